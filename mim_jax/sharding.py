"""Where arrays live: the mesh, the parameters by path rules, the batch by rows."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mim_jax.errors import InputError

AXES = ('data', 'fsdp', 'model')
ROWS = P(('data', 'fsdp'))  # a batch is cut along its first axis over both

TABLE = 'embedding$'  # what is looked up and not multiplied

# Ordered (path regex, spec of the last axes); the first match counts, no match is replicated. Products that widen are cut
# over 'model' along their output, products that narrow along their input, so a pair of them needs one all-reduce.
RULES = (
    (r'(^|/)(qkv|q|kv|fc1)/kernel$', P('fsdp', 'model')),
    (r'(^|/)(out|fc2)/kernel$', P('model', 'fsdp')),
    (r'kernel$', P('fsdp', None)),
    (TABLE, P(None, 'fsdp')),
)


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of axes (data, fsdp, model); -1 takes the devices that are left. Of several slices of TPUs, each holds whole copies of the parameters.

    Args:
        data: groups of devices that hold the same parameters and read different rows.
        fsdp: devices that read different rows and share one copy of the parameters.
        model: devices that share the matrix products of the same rows.
        devices: those to take; None = all of this run.

    Raises:
        InputError: the sizes do not multiply to the devices there are (one process may take fewer), or `data` not over the slices.
    """
    sizes, devices = [data, fsdp, model], jax.devices() if devices is None else devices
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise InputError(
            f'mesh.data, mesh.fsdp, mesh.model = {data}, {fsdp}, {model}: each must be 1 or more, and at most one -1 (= the rest)'
        )
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    used = int(np.prod(sizes))
    if not 0 < used <= len(devices) or (used < len(devices) and (-1 in (data, fsdp, model) or jax.process_count() > 1)):
        raise InputError(
            f'mesh.data, mesh.fsdp, mesh.model = {data}, {fsdp}, {model} do not multiply to the {len(devices)} devices of this run'
        )
    types, slices = (AxisType.Auto,) * 3, len({getattr(device, 'slice_index', 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices[:used])
    if devices[0].platform != 'tpu':  # machines of GPUs, which any axis may span
        return Mesh(mesh_utils.create_device_mesh(sizes, devices[:used]), AXES, axis_types=types)
    if sizes[0] % slices:
        raise InputError(
            f'mesh.data={sizes[0]} does not divide over the {slices} slices of TPUs, between which only gradients may travel: use a multiple of {slices}'
        )
    inside = (sizes[0] // slices, *sizes[1:])
    return Mesh(mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices[:used]), AXES, axis_types=types)


def spec_of(path: str, shape: Sequence[int], mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES) -> tuple[P, bool]:
    """The spec of one array by the first rule its path matches.

    Args:
        path: 'encoder/block_0/mlp/fc1/kernel', or any longer path that ends alike ('opt_state/0/mu/encoder/...').
        shape: of the array; a rule speaks of its last axes, leading ones (scanned layers) are whole.

    Returns:
        spec: axes that do not divide are left whole.
        exact: False when an axis was left whole for that reason.
    """
    rule = next((spec for regex, spec in rules if re.search(regex, path)), P())
    if not rule or len(rule) > len(shape):
        return P(), True
    wanted = (None,) * (len(shape) - len(rule)) + tuple(rule)
    fits = [axis is None or size % mesh.shape[axis] == 0 for size, axis in zip(shape, wanted, strict=True)]
    return P(*(axis if fit else None for axis, fit in zip(wanted, fits, strict=True))), all(fits)


def shardings(tree, mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES):
    """A tree of NamedSharding like `tree` (arrays or shapes): parameters, and all whose paths end alike (EMA, moments)."""
    whole = []

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        spec, exact = spec_of(name, leaf.shape, mesh, rules)
        if not exact:
            whole.append(f'{name} {tuple(leaf.shape)}')
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place, tree)
    if whole:
        logging.warning('%d arrays have axes that do not divide over the mesh %s and stay whole along them, the first: %s',
                        len(whole), dict(mesh.shape), whole[0])  # fmt: skip
    return placed


def keep_rows(call, args, kwargs, context):
    """Interceptor of flax modules: tokens [B, N, D] stay cut by rows wherever a module gives them out.

    Where parameters are cut over 'fsdp' too, the compiler would otherwise rather gather the rows of all devices than a layer's
    parameters.
    """
    out, mesh = call(*args, **kwargs), jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape['fsdp'] == 1 or not isinstance(out, jax.Array) or out.ndim < 2:
        return out
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    rows = P(*ROWS, *[P.UNCONSTRAINED] * (out.ndim - 1))  # other axes may be cut over 'model'
    return out if out.shape[0] % shards else jax.lax.with_sharding_constraint(out, rows)


def gather_tables(params: dict) -> dict:
    """Tables that are cut over 'fsdp' made whole before they are looked up: the ids and the vectors of all devices would go round else."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape['fsdp'] == 1:
        return params

    def gather(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return jax.lax.with_sharding_constraint(x, P()) if re.search(TABLE, name) else x

    return jax.tree_util.tree_map_with_path(gather, params)


def on_each_device(fn: Callable, batch: int, heads: int) -> tuple[Callable, int]:
    """A function that knows nothing of meshes, such as a kernel the compiler cannot cut, run by every device on its share.

    Args:
        fn: `(q, k, v, mask) -> array`: q, k, v and the result [B, N, H * C] are cut by rows over 'data' and 'fsdp' and by heads over 'model'
            where they divide, the mask [B, ...] or None by rows.
        batch, heads: B and H.

    Returns:
        The function of whole arrays, and the heads that `fn` gets at once.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return fn, heads
    rows = ROWS[0] if batch % (mesh.shape['data'] * mesh.shape['fsdp']) == 0 else None
    cut = heads % mesh.shape['model'] == 0
    spec = P(rows, None, 'model' if cut else None)
    share = jax.shard_map(fn, in_specs=(spec, spec, spec, P(rows)), out_specs=spec, check_vma=False)
    return share, heads // mesh.shape['model'] if cut else heads


def abstract(shapes, placed):
    """The target of a restore: the shapes of `jax.eval_shape` with the shardings of `shardings`."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that a global batch can be cut over the mesh, the processes and the micro-batches.

    Raises:
        InputError: it cannot; the sentence has the nearest sizes that can.
    """
    shards, hosts = mesh.shape['data'] * mesh.shape['fsdp'], jax.process_count()
    unit = int(np.lcm(shards, hosts)) * accumulate
    if batch_size < 1 or batch_size % unit:
        below = batch_size // unit * unit
        near = f'{below} or {below + unit}' if below > 0 else f'{unit}'
        over = f'{shards} devices (mesh.data x mesh.fsdp)'
        over += f' and {hosts} hosts' if hosts > 1 else ''
        over += f' in {accumulate} micro-batches' if accumulate > 1 else ''
        raise InputError(f'data.batch_size={batch_size} does not divide over {over}: use {near}')


def put(batch: Mapping, mesh: Mesh) -> dict:
    """This process's rows of a batch of NumPy arrays -> global arrays cut along their first axis.

    Raises:
        InputError: the rows do not divide over the devices.
    """
    rows = len(next(iter(batch.values()))) * jax.process_count()
    check_batch(rows, mesh)
    return {name: jax.make_array_from_process_local_data(NamedSharding(mesh, ROWS), x) for name, x in batch.items()}
