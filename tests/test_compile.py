"""How a batch is cut so that a step fits."""

import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import compile, masks, sharding, train
from mim_jax.errors import InputError
from tests import checks


def lowered(tried, rows, per_row, fixed=0.0, too_large_to_compile=math.inf):
    """Steps of `rows` rows that take `per_row` bytes for each row of a micro-batch."""

    def lower(accumulate):
        def build(compiler_options=None):
            tried.append(accumulate)
            temporary = per_row * rows // accumulate
            if temporary > too_large_to_compile:
                raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm')
            memory = SimpleNamespace(
                argument_size_in_bytes=fixed,
                temp_size_in_bytes=temporary,
                output_size_in_bytes=fixed,
                alias_size_in_bytes=fixed,
            )
            return SimpleNamespace(memory_analysis=lambda: memory)

        return SimpleNamespace(compile=build)

    return lower


@pytest.mark.parametrize(
    ('limit', 'accumulate', 'tries'),
    [(1000, 1, [1]), (650, 2, [1, 2]), (160, 8, [1, 8]), (130, 16, [1, 8, 16])],
)
def test_the_fewest_micro_batches_that_fit(limit, accumulate, tries):
    tried = []
    found = compile.fit(lowered(tried, 32, 30, fixed=40), 32, compile.cuts(32, 0), limit)
    assert (found.accumulate, tried) == (accumulate, tries)
    assert found.bytes_per_device == 40 + 30 * 32 // accumulate


def test_no_cut_that_could_fit_is_left_out():
    tried = []
    assert compile.fit(lowered(tried, 6, 100), 6, compile.cuts(6, 0), 250).accumulate == 3 and tried == [1, 3]
    assert compile.fit(lowered(tried, 6, 100, fixed=60), 6, compile.cuts(6, 0), 310).accumulate == 3
    assert tried == [1, 3, 1, 2, 3]


def test_what_is_too_large_to_compile_is_cut_too():
    tried = []
    assert compile.fit(lowered(tried, 12, 10, too_large_to_compile=50), 12, compile.cuts(12, 0), 60).accumulate == 4
    assert tried == [1, 2, 4]


def test_nothing_fits():
    with pytest.raises(
        InputError, match='1 rows at once need 0.1 GB and a device has 0.0 GB for them: use a smaller model'
    ):
        compile.fit(lowered([], 4, 1e8), 4, compile.cuts(4, 0), 1e7)


@pytest.mark.parametrize(('words', 'expected'), [
    ('RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (21.29G) exceeds available HBM (15.75G).', 21.29 * 2**30),
    ('RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G)', 512 * 2**20),
    ('RESOURCE_EXHAUSTED: out of memory', math.inf),
])  # fmt: skip
def test_what_the_compiler_says_it_would_need(words, expected):
    assert compile.asked(words) == expected


def test_cuts_follow_what_the_compiler_says_it_would_need():
    tried, gib = [], 2**30

    def lower(accumulate):
        tried.append(accumulate)
        if accumulate < 8:
            raise jax.errors.JaxRuntimeError(
                f'RESOURCE_EXHAUSTED: HLO temporaries ({80 / accumulate}G) exceeds available HBM'
            )
        return lowered([], 16, 1)(accumulate)

    assert compile.fit(lower, 16, compile.cuts(16, 0), 15 * gib).accumulate == 8 and tried == [1, 8]
    with pytest.raises(compile.DoesNotFit) as refusal:  # refused, though less than the limit
        compile.fit(lower, 4, [4], 24 * gib, arguments=3 * gib)
    assert (refusal.value.rows, refusal.value.need, refusal.value.limit) == (1, 23 * gib, 24 * gib)


def test_micro_batch():
    assert compile.cuts(12, 0) == [1, 2, 3, 4, 6, 12] and compile.cuts(12, 4) == [3]
    with pytest.raises(
        InputError, match='micro_batch=5 does not divide the 12 rows of a device: use one of 1, 2, 3, 4, 6, 12'
    ):
        compile.cuts(12, 5)


def test_other_errors_of_the_compiler_are_not_about_memory():
    def fails(compiler_options=None):
        raise jax.errors.JaxRuntimeError('INTERNAL: broken')

    with pytest.raises(jax.errors.JaxRuntimeError):
        compile.fit(lambda accumulate: SimpleNamespace(compile=fails), 4, [1, 2], 1e9)


WINDOWED = 'xla_jf_spmd_threshold_for_windowed_einsum_mib'


def test_options_of_the_compiler_are_those_of_the_platform_and_the_environment_stands_over_them(monkeypatch):
    tried = []
    program = SimpleNamespace(compile=lambda compiler_options: tried.append(compiler_options))
    compile.compiled(program, 'tpu', more=1)
    compile.compiled(program, 'gpu')
    monkeypatch.setenv('LIBTPU_INIT_ARGS', f'--{WINDOWED}=7')
    compile.compiled(program, 'tpu')
    assert tried == [{WINDOWED: 1_000_000, 'more': 1}, {}, {}]


def test_a_compiler_that_does_not_know_an_option_gets_none():
    tried = []

    def build(compiler_options=None):
        tried.append(compiler_options)
        if compiler_options:
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option: 'it'")

    compile.compiled(SimpleNamespace(compile=build), 'cpu')
    compile.compiled(
        SimpleNamespace(
            compile=lambda compiler_options: build({k: v for k, v in compiler_options.items() if k != 'own'})
        ),
        'cpu',
        own=1,
    )
    assert tried == [compile.OPTIONS['cpu'], {}] * 2


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    found = {}
    monkeypatch.setattr(jax.config, 'update', found.__setitem__)
    for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'):
        monkeypatch.setenv(name, '')
        compile.keep_compilations(tmp_path, several=True)
        assert not found
        monkeypatch.delenv(name)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    for workdir in (None, tmp_path / 'run'):
        compile.keep_compilations(workdir, several=False)
        assert found == {'jax_compilation_cache_dir': f'{tmp_path}/home/mim_jax/xla'}


def test_the_cache_is_in_the_workdir_where_hosts_share_it_or_the_home_may_end_first(monkeypatch, tmp_path):
    found = {}
    monkeypatch.setattr(jax.config, 'update', found.__setitem__)
    for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE'):
        monkeypatch.delenv(name, raising=False)
    compile.keep_compilations(tmp_path / 'run', several=True)
    assert found.pop('jax_compilation_cache_dir') == f'{tmp_path}/run/xla'
    monkeypatch.setattr(compile, 'file_system', lambda path: 'bucket' in str(path))
    compile.keep_compilations(tmp_path / 'bucket' / 'run', several=False)
    assert found == {'jax_compilation_cache_dir': f'{tmp_path}/bucket/run/xla'}


def test_the_file_system_of_a_path_that_is_not_there_yet(tmp_path):
    here, proc = compile.file_system(tmp_path), compile.file_system(Path('/proc/self'))
    assert compile.file_system(tmp_path / 'a' / 'b') == here != proc


def test_flops_are_those_of_the_products():
    """Three times the forward pass: two products of [1, 4] x [4, 5] and [1, 5] x [5, 1]."""
    config = checks.shipped('quickstart')
    config.data.update(batch_size=8, canvas=(2, 2), dtype='float32')

    class Objective:
        def apply(self, variables, batch, keys, train):
            x = batch['image'].reshape(1, 4)
            return (x @ variables['params']['a'] @ variables['params']['b']).sum(), {}

    params = dict(a=np.zeros((4, 5)), b=np.zeros((5, 1)))
    flops = compile.model_flops(
        config, Objective(), lambda key, batch, train: {'image': batch['image'] + jnp.float32(0)}, params
    )
    assert flops == 3 * 2 * (4 * 5 + 5)


@pytest.mark.parametrize('scan', [False, True])
def test_parameters_cut_over_fsdp_are_gathered_and_tokens_are_not(scan):
    config = checks.tiny('videomae_v2')
    config.data.batch_size, config.micro_batch = 20, 5
    config.encoder.update(scan=scan, remat='full')
    mesh = sharding.make_mesh(1, 4, 1)
    with jax.set_mesh(mesh):
        text = compile.train_step(config, *train.parts(config, mesh), mesh).call.as_text()
    in_blocks = [line for line in text.splitlines() if '/blocks/' in line]
    assert not [line for line in in_blocks if '= f32[20,' in line]  # never the rows of all devices
    assert [line for line in in_blocks if '= f32[5,' in line] and 'all-gather' in text


def test_flops_of_a_teacher_are_those_of_its_forward_pass():
    """Of I-JEPA's parts, by the shapes of their products: of a block on N tokens, 24 N D^2 + 4 N^2 D."""
    config = checks.tiny('ijepa')
    objective, augment, abstract = train.parts(config, sharding.make_mesh(1))
    flops = compile.model_flops(config, objective, augment, abstract.params)

    def blocks(depth, n, width=16):
        return depth * (24 * n * width**2 + 4 * n**2 * width)

    patch, seen, slots = (
        14 * 14 * 3,
        int(0.28 * 16),
        masks.multiblock(jax.random.key(0), (1, 4, 4)).target.shape[1] // 4,
    )
    student = 2 * seen * patch * 16 + blocks(2, seen)
    teacher = 2 * 16 * patch * 16 + blocks(2, 16)
    predictor = 4 * (2 * seen * 16**2 + blocks(1, seen + slots) + 2 * slots * 16**2)
    mean_goal = 2 * 4 * slots * 16
    assert flops == 3 * (student + predictor + mean_goal) + teacher
