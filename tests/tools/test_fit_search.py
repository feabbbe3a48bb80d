"""The search, with a compiler that only counts: memory and time are formulas of the config."""

import math
from types import SimpleNamespace

import jax
import pytest

from mim_jax import compile
from mim_jax.compile import DoesNotFit
from mim_jax.errors import InputError
from mim_jax.tools import aot, fit_search, topology
from tests import checks

KEPT = dict(none=1.0, dots=0.6, full=0.2)
SLOWER = dict(none=1.0, dots=1.1, full=1.3)


@pytest.fixture
def config():
    config = checks.tiny('mae')
    config.data.batch_size = 64
    return config


@pytest.fixture
def world(monkeypatch):
    """`world(state=, row=, exchange=) -> (place, tried)`: bytes of the whole state, of the activations of a row, and seconds that parts of a copy cost."""

    def make(state=0.0, row=1.0, exchange=1e-3, memory=16.0):
        place, tried = aot.Place('v5e:2x4', jax.devices()[:8], topology.CHIPS['v5e'], memory), []

        def measure(config, compiler, least=1):
            data, fsdp, model = fit_search.sizes(config.mesh, 8)
            rows, policy = config.data.batch_size // (data * fsdp), config.encoder.remat

            def compiled(n):
                tried.append(((data, fsdp, model), policy, n))
                temporary = row * rows / n * KEPT[policy] / model
                memory = SimpleNamespace(argument_size_in_bytes=state / fsdp / model, temp_size_in_bytes=temporary,
                                         output_size_in_bytes=0, alias_size_in_bytes=0)  # fmt: skip
                return SimpleNamespace(memory_analysis=lambda: memory)

            lower = compiler.of('a step', lambda n: n, rows)
            choices = [n for n in compile.cuts(rows, config.micro_batch) if n >= least or config.micro_batch]
            step = compile.fit(lower, rows, choices, aot.room_of(place), compiled=compiled)
            n, seconds = step.accumulate, SLOWER[policy] * (1 + 0.01 * step.accumulate) + 0.2 * config.encoder.scan
            memory = dict(
                total=step.bytes_per_device, temporaries=row * rows / n * KEPT[policy] / model, room=aot.room_of(place)
            )
            return dict(micro_batches=n, rows=rows // n, memory=memory, state=state / fsdp / model, seconds=seconds, mfu_exposed=0.1,
                        collective_seconds=exchange * (fsdp > 1) + 10 * exchange * (model > 1)), str(tried[-1])  # fmt: skip

        def fixed_bytes(config, place):
            data, fsdp, model = fit_search.sizes(config.mesh, 8)
            return state / fsdp / model, config.data.batch_size // (data * fsdp)

        monkeypatch.setattr(aot, 'measure', measure)
        monkeypatch.setattr(fit_search, 'fixed_bytes', fixed_bytes)
        return place, tried

    return make


def search(config, place, tries=50):
    return fit_search.search(config, place, tries, lambda line: None)[0]


def test_what_fits_whole_is_confirmed_and_remat_is_not_tried(config, world):
    place, tried = world(state=2.0, row=0.5)
    found = search(config, place)
    assert found['paste'] == '' and found['search'][0]['changes'] == {}
    assert {policy for _, policy, _ in tried} == {'none'}
    assert [mesh for mesh, _, n in tried if n == 1][:2] == [(8, 1, 1), (1, 8, 1)]
    assert tried[-1] == ((8, 1, 1), 'none', 2)  # less rows at once than the best


def test_a_state_that_fits_in_parts_only(config, world):
    place, tried = world(state=40.0, row=0.5)
    found = search(config, place)
    assert found['paste'] == '--config.mesh.fsdp=8' and found['micro_batches'] == 1
    assert found['search'][0]['seconds'] is None and 'does not fit, needs' in found['search'][0]['row']


def test_remat_where_less_rows_at_once_are_slower(config, world, monkeypatch):
    monkeypatch.setitem(SLOWER, 'dots', 1.001)
    place, tried = world(state=1.0, row=2.4)
    found = search(config, place)
    assert found['paste'] == '--config.encoder.remat=dots --config.terms.pixels.predictor.remat=dots'
    assert (
        fit_search.applied(config, {'encoder.remat': 'dots'}).encoder.remat == 'dots' and config.encoder.remat == 'none'
    )


def test_micro_batches_begin_where_another_mesh_ended(config, world):
    place, tried = world(state=0.0, row=8.0)  # 1.8 rows at once
    search(config, place)
    assert [n for mesh, policy, n in tried if (mesh, policy) == ((8, 1, 1), 'none')] == [1, 8]
    assert [n for mesh, policy, n in tried if (mesh, policy) == ((1, 8, 1), 'none')] == [8]


def test_a_micro_batch_of_the_config_is_not_held_on_to(config, world):
    config.micro_batch = 2
    place, tried = world(state=1.0, row=0.5)
    assert search(config, place)['paste'] == '--config.micro_batch=0' and tried[:2] == [
        ((8, 1, 1), 'none', 4),
        ((8, 1, 1), 'none', 1),
    ]


def test_products_are_shared_only_where_nothing_else_fits(config, world):
    config.encoder.heads = config.terms.pixels.predictor.heads = 4
    place, tried = world(state=0.0, row=100.0)
    assert search(config, place)['paste'].startswith(
        '--config.mesh.fsdp=4 --config.mesh.model=2 --config.encoder.remat=full'
    )
    assert (
        len([policy for (data, fsdp, model), policy, _ in tried if policy == 'none' and model == 1]) == 2
    )  # it is not hoped for on each mesh
    place, tried = world(state=0.0, row=1.0)
    search(config, place)
    assert not [mesh for mesh, _, _ in tried if mesh[2] > 1]


@pytest.mark.parametrize(('row', 'meshes'), [(0.5, {(8, 1, 1), (2, 4, 1), (4, 2, 1)}), (100.0, {(2, 2, 2)})])
def test_no_slice_holds_a_part_of_a_copy(config, world, row, meshes):
    config.encoder.heads = config.terms.pixels.predictor.heads = 4
    place, tried = world(state=0.0, row=row)
    config.mesh.fsdp = 8
    found = search(config, place._replace(name='2xv5e:2x2'))
    assert {mesh for mesh, _, _ in tried} >= meshes and all(data % 2 == 0 for (data, _, _), _, _ in tried)
    assert found['paste'].startswith(
        '--config.mesh.fsdp=1' if row < 1 else '--config.mesh.fsdp=2 --config.mesh.model=2'
    )


def test_heads_are_those_of_the_size_where_none_are_given():
    assert fit_search.heads(checks.shipped('mae')) == [16, 16] and fit_search.heads(checks.shipped('quickstart')) == [
        4,
        4,
    ]


def test_scanned_layers_are_tried_unrolled(config, world):
    config.encoder.scan = True
    found = search(config, world(state=2.0, row=0.5)[0])
    assert found['paste'] == '--config.encoder.scan=False'


def test_tries_are_counted_by_compilation(config, world):
    place, tried = world(state=0.0, row=8.0)
    said = []
    found, text = fit_search.search(config, place, 5, said.append)
    assert len(tried) == 5 and found['micro_batches'] == 8 and 'stopped after --tries=5' in said[-1]
    assert eval(text) in tried
    with pytest.raises(InputError, match='--tries=1 is too few'):
        fit_search.search(config, place, 1, said.append)


def test_nothing_fits(config, world):
    place, _ = world(state=1000.0, row=1.0)
    with pytest.raises(DoesNotFit) as refusal:
        search(config, place)
    assert fit_search.refused(config, place, refusal.value).endswith('take more devices or a smaller model')


def test_a_batch_smaller_than_the_slice_shares_products(config, world):
    config.data.batch_size = 4
    found = search(config, world(row=0.5)[0])
    assert found['paste'] == '--config.mesh.fsdp=4 --config.mesh.model=2'


@pytest.mark.parametrize(('changes', 'need', 'expected'), [
    ({'micro_batch': 32, 'data.batch_size': 512}, 60.0, '--config.micro_batch=8 (--search tries)'),  # 16 would be a little too much
    ({'micro_batch': 8}, 15.0, '--config.encoder.remat=dots'),  # before less than 8 rows
    ({'micro_batch': 8}, 60.0, '--config.encoder.remat=full --config.terms.pixels.predictor.remat=full --config.micro_batch=4'),
    ({}, 30.0, '--config.encoder.remat=full'),
    ({'encoder.remat': 'full', 'terms.pixels.predictor.remat': 'full'}, 30.0, 'take more devices'),
])  # fmt: skip
def test_what_would_fit(config, world, changes, need, expected):
    place, _ = world(state=1.0)
    config = fit_search.applied(config, changes)
    sentence = fit_search.refused(config, place, DoesNotFit(config.micro_batch or 1, need, aot.room_of(place)))
    assert expected in sentence and 'at once need' in sentence and sentence.startswith('it does not fit')


def test_a_larger_mesh_fsdp_is_the_answer_to_a_large_state(config, world):
    place, _ = world(state=30.0)
    sentence = fit_search.refused(config, place, DoesNotFit(1, 31.0, aot.room_of(place)))
    assert '--config.mesh.fsdp=8' in sentence and 'remat' not in sentence


def test_a_refusal_without_a_number(config, world):
    place, _ = world()
    assert 'the compiler does not say by how much' in fit_search.refused(config, place, DoesNotFit(1, math.inf, 14.0))


def test_there_is_nothing_to_rank_by_on_a_cpu(config):
    place = aot.Place('cpu', jax.devices()[:1], None, 1e9)
    with pytest.raises(InputError, match='--topology=cpu has none'):
        fit_search.search(config, place, 12, print)
