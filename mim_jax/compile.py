"""Compiling the train step once, ahead of the first batch: how much memory it takes, and into how many micro-batches it is cut."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax import build, sharding, step
from mim_jax.errors import InputError
from mim_jax.progress import matmul_flops

MEMORY_SHARE = 0.92  # of a device's memory that the step may take
OPTIONS = dict(  # of the compiler, by platform
    # YNNPACK for sums and maxima, where it is ten times as fast, and not for products, where it takes a tenth longer
    cpu=dict(xla_cpu_experimental_ynn_fusion_type='LIBRARY_FUSION_TYPE_REDUCE'),
    # parameters cut over fsdp are gathered whole: piece by piece amid the products costs more than it hides, three times the step of MAE on v5e
    tpu=dict(xla_jf_spmd_threshold_for_windowed_einsum_mib=1_000_000),
)


class DoesNotFit(InputError):
    """The step takes more memory than a device has.

    Attributes:
        rows: computed at once on a device.
        need, limit: bytes of a device; `need` is inf where the compiler does not say.
    """

    def __init__(self, rows: int, need: float, limit: float):
        self.rows, self.need, self.limit = rows, need, limit
        need = f'need {need / 1e9:.1f} GB' if math.isfinite(need) else 'need more memory than there is'
        super().__init__(
            f'{rows} rows at once {need} and a device has {limit / 1e9:.1f} GB for them: '
            'use a smaller model, encoder.remat=full, a larger mesh.fsdp, or a smaller micro_batch'
        )


class Step(NamedTuple):
    """A compiled train step: `call(state, batch, lr_scale) -> (state, metrics)`, cut into `accumulate` micro-batches; the seconds of its trace and its compile."""

    call: Callable
    accumulate: int
    bytes_per_device: int
    seconds: dict[str, float]


def keep_compilations(workdir: Path | None, several: bool) -> None:
    """Turns on the compile cache on disk, unless the environment has said where it is or that it is off.

    It is in the home folder, for all runs of a machine. In the workdir it is read by all hosts, of which only the first writes it,
    and outlives a machine whose home ends with it: hence there for several hosts, and on another file system, as that of a bucket.

    Args:
        workdir: of the run; None = there is none.
        several: whether the run has more than one host.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ or 'JAX_ENABLE_COMPILATION_CACHE' in os.environ:
        return
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'mim_jax' / 'xla'
    if workdir and (several or file_system(workdir) != file_system(cache)):
        cache = workdir.absolute() / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(cache))


def file_system(path: Path) -> int:
    """The number of the file system that a path is on, or will be."""
    path = path.absolute()
    return next(at for at in (path, *path.parents) if at.exists()).stat().st_dev


def batch_spec(config, rows: int | None = None) -> dict:
    """Shapes and types of the records of a batch, as the input pipeline delivers them."""
    rows, row = rows or config.data.batch_size, build.reader(config).row
    row = row | dict(label=((), 'int32'), valid=((), 'bool'))
    return {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in row.items()}


def train_step(config, objective, augment: Callable, abstract: step.TrainState, mesh: Mesh) -> Step:
    """Lowers and compiles the step of a config on a mesh.

    Args:
        abstract: shapes and shardings of the state.

    Raises:
        DoesNotFit: see `fit`.
    """
    rows = config.data.batch_size // (mesh.shape['data'] * mesh.shape['fsdp'])
    lower = lowering(config, objective, augment, abstract, mesh)
    arguments = bytes_of((abstract, batch_on(config, mesh)))
    return fit(lower, rows, cuts(rows, config.micro_batch), MEMORY_SHARE * device_memory(), arguments)


def lowering(config, objective, augment: Callable, abstract: step.TrainState, mesh: Mesh) -> Callable[[int], jax.stages.Lowered]:  # fmt: skip
    """`(micro-batches) -> the lowered train step`, from shapes alone; arguments as of `train_step`."""
    tx, schedule, loss = (
        build.optimizer(config)(abstract.params),
        build.schedule(config),
        step.make_loss(objective, augment),
    )
    batch, placed = batch_on(config, mesh), jax.tree.map(lambda x: x.sharding, abstract)

    def lower(accumulate: int):
        def train_step(state, batch, lr_scale):
            return step.train_step(state, batch, lr_scale, seed=config.seed, loss=loss, tx=tx, schedule=schedule,
                                   accumulate=accumulate, ema=build.ema(config))  # fmt: skip

        jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(placed, NamedSharding(mesh, PartitionSpec())))
        return jitted.lower(abstract, batch, jax.ShapeDtypeStruct((), jnp.float32))

    return lower


def batch_on(config, mesh: Mesh) -> dict:
    """`batch_spec` of the global batch, with where its rows lie."""
    rows = NamedSharding(mesh, sharding.ROWS)
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=rows) for k, v in batch_spec(config).items()}


def bytes_of(abstract) -> int:
    """Bytes on one device of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(abstract)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def cuts(rows: int, micro_batch: int) -> list[int]:
    """Into how many micro-batches the rows of a device may be cut, ascending.

    Args:
        rows: of the global batch on one device.
        micro_batch: rows a device computes at once; 0 = any that divide.

    Raises:
        InputError: `micro_batch` does not divide `rows`.
    """
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    if micro_batch and rows % micro_batch:
        raise InputError(
            f'micro_batch={micro_batch} does not divide the {rows} rows of a device: use one of {", ".join(map(str, divisors))}'
        )
    return [rows // micro_batch] if micro_batch else divisors


def compiled(lowered: jax.stages.Lowered, platform: str = '', **options) -> jax.stages.Compiled:
    """The program by `OPTIONS` of a platform, '' = of this run; by none of them where the compiler does not know one.

    Args:
        options: more of the compiler's, by name.
    """
    own = OPTIONS.get(platform or jax.default_backend(), {})
    own = {name: value for name, value in own.items() if name not in os.environ.get('LIBTPU_INIT_ARGS', '')}
    try:
        return lowered.compile(compiler_options=own | options)
    except jax.errors.JaxRuntimeError as error:  # options come and go
        if not own or 'No such compile option' not in str(error):
            raise
        return lowered.compile(compiler_options=options)


def fit(
    lower: Callable[[int], jax.stages.Lowered],
    rows: int,
    choices: Sequence[int],
    limit: float,
    arguments: int = 0,
    compiled: Callable[[jax.stages.Lowered], jax.stages.Compiled] = compiled,
) -> Step:
    """Compiles with the fewest micro-batches whose memory fits.

    Args:
        lower: `(accumulate) -> lowered step`.
        rows: of the global batch on one device.
        choices: numbers of micro-batches to try, ascending.
        limit: bytes of a device.
        arguments: bytes of state and batch on a device, of which a compiler that refuses does not speak.
        compiled: how to compile.

    Raises:
        DoesNotFit: the smallest micro-batch does not fit.
    """
    least, need = 1, 0.0
    for accumulate in choices:
        if accumulate < least and accumulate != choices[-1]:
            continue
        try:
            begin = time.monotonic()
            lowered = lower(accumulate)
            traced = time.monotonic()
            call = compiled(lowered)
            seconds = dict(trace=traced - begin, compile=time.monotonic() - traced)
            memory = call.memory_analysis()
            temporary = memory.temp_size_in_bytes
            need = memory.argument_size_in_bytes + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
        except jax.errors.JaxRuntimeError as error:  # on TPU a program that is too large does not compile
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            call, temporary = None, asked(str(error))
            need = temporary + arguments
        if call and need <= limit:
            return Step(call, accumulate, need, seconds)
        least = 2 * accumulate if math.isinf(need) else max(accumulate + 1, math.ceil(accumulate * temporary / limit))
    raise DoesNotFit(rows // choices[-1], need, limit)


def asked(refusal: str) -> float:
    """Bytes of a device that temporaries would need, from the words with which the TPU compiler refuses them; inf where they do not say."""
    found = re.search(r'HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available', refusal)
    return float(found[1]) * 1024 ** ' KMGT'.index(found[2] or ' ') if found else math.inf


def device_memory() -> float:
    """Bytes of one device; CPU devices share the memory of the host."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if 'bytes_limit' in stats:
        return stats['bytes_limit']
    if device.platform != 'cpu':
        return math.inf
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / jax.local_device_count()


def model_flops(config, objective, augment: Callable, params: dict) -> float:
    """FLOPs of the matrix products of one example, forward and backward, nothing recomputed; of a teacher, forward."""
    rows = max(getattr(objective, 'clean_every', 1), 1)
    keys = jax.eval_shape(partial(step.row_keys, 0, 0, rows))
    view = jax.eval_shape(partial(augment, train=True), keys, batch_spec(config, rows))

    encodes = []

    def teacher(batch):
        encode = partial(objective.apply, method='encode')
        encodes.append(matmul_flops(encode, {'params': params}, batch))
        return jnp.zeros_like(jax.eval_shape(encode, {'params': params}, batch))

    taught = dict(teacher=teacher) if getattr(objective, 'taught', False) else {}
    run = partial(objective.apply, train=False, **taught)
    forward = matmul_flops(lambda p, b, k: run({'params': p}, b, k)[0], params, view, keys)
    return (3.0 * forward + sum(encodes)) / rows
