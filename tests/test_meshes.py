"""Every family of objectives on eight devices: the same numbers as on one, no more collectives than its mesh calls for, checkpoints for every mesh."""

import functools
import itertools
import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import numpy as np
import pytest

from mim_jax import compile, sharding, train
from mim_jax.checkpoint import Checkpoints
from mim_jax.step import TrainState
from mim_jax.tools import hlo, hlo_collectives
from tests import checks

STEPS, DEVICES = 5, 8
DATA, FSDP, BOTH, ALL = (8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)
CASES = [('mae', sizes) for sizes in (DATA, FSDP, BOTH, ALL)]
CASES += [
    pytest.param(name, sizes, marks=pytest.mark.slow)
    for name in ('videomae', 'mdlm', 'umd', 'ijepa')
    for _, sizes in CASES
]

# What a step may send: gradients, sums and means over the rows' axes, parameters gathered over fsdp, and over model the outputs of the products
# that narrow, with what the compiler makes of the kernels that model does not cut.
SUMS = {('all-reduce', what) for what in ('parameter', 'scalar', 'mean', 'key')}
SENT = {
    'data': SUMS,
    'fsdp': SUMS | {('all-gather', 'parameter')},
    'data+fsdp': SUMS | {('all-gather', 'parameter')},
    'model': {
        ('all-reduce', 'tokens'),
        ('all-reduce', 'parameter'),
        ('all-reduce', 'scalar'),
        ('all-gather', 'parameter'),
        ('all-to-all', 'tokens'),  # what a denoiser is told of each row, beside kernels that model does not cut
    },
    'fsdp+model': {('collective-permute', 'parameter')},
}
FEATURES = ('all-gather', 'features')  # the rows that the monitor of collapse looks at


class Ran(NamedTuple):
    """What a few steps on a mesh left."""

    losses: list[float]
    norms: list  # of the gradient of each parameter
    state: TrainState
    abstract: TrainState  # shapes and shardings
    collectives: Counter  # by (kind, axes, what)
    sent: Counter  # bytes of the arrays, likewise


def batch(config, seed):
    """More rows than those of `checks`."""
    times = config.data.batch_size // checks.ROWS
    parts = [checks.raw_batch(config, times * seed + i) for i in range(times)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.cache
def ran(name, sizes, micro_batches=1):
    config = checks.tiny(name)
    each = config.objective.get('clean_every', 0) or 1  # rows of a device, so that each has both kinds
    rows, config.total_steps = DEVICES * each * micro_batches, STEPS
    config.data.batch_size, config.micro_batch = rows, rows // (sizes[0] * sizes[1] * micro_batches)
    # a large rate, and an Adam that does not make a step of what is but rounding
    config.schedule.update(lr=1e-3, scale_lr_by=0)
    config.optimizer = dict(config.optimizer, eps=1e-3)
    mesh = sharding.make_mesh(*sizes)
    with jax.set_mesh(mesh):
        objective, augment, abstract = train.parts(config, mesh)
        step = compile.train_step(config, objective, augment, abstract, mesh).call
        placed = jax.tree.map(lambda x: x.sharding, abstract)
        state = jax.jit(train.initial(config, objective, augment), out_shardings=placed)(batch(config, 0))
        losses, norms = [], []
        for i in range(STEPS):
            state, metrics = step(state, sharding.put(batch(config, i), mesh), np.float32(1))
            losses.append(float(metrics['loss']))
            norms.append(np.asarray(metrics['leaf_norms']))
    return Ran(losses, norms, state, abstract, *seen(step.as_text(), abstract.params, mesh, rows))


def seen(text, params, mesh, rows):
    """Collectives by kind, axes, and what they carry: how many, and their bytes."""
    known = {part for x in jax.tree.leaves(params) for part in parts(x.shape, mesh)}
    found, sent = Counter(), Counter()
    for kind, i, times, _ in hlo_collectives.collectives(hlo.parse(text)):
        axes = hlo_collectives.axes_of(hlo_collectives.groups_of(i.rest, mesh.size), mesh.shape)
        for dtype, shape in arrays(i.shape):
            what = carried(dtype, shape, known, rows)
            found[kind, axes, what] += times
            sent[kind, axes, what] += times * math.prod(shape) * 4  # all are of 32 bits
    return found, sent


def parts(shape, mesh):
    """Shapes, sorted, of an array of parameters or of one of its layers, cut in any way over the mesh."""
    ways = {1, *mesh.shape.values(), mesh.shape['fsdp'] * mesh.shape['model']}
    for whole in (shape, shape[1:]):
        for cut in itertools.product(ways, repeat=len(whole)):
            if all(n % by == 0 for n, by in zip(whole, cut, strict=True)):
                yield tuple(sorted(n // by for n, by in zip(whole, cut, strict=True)))


def arrays(text):
    """(dtype, shape) of the arrays of 'f32[]' or '(f32[16], f32[16,64])'."""
    found = re.findall(r'([a-z]+\d*)\[([\d,]*)\]', text)
    return [(dtype, tuple(map(int, dims.split(','))) if dims else ()) for dtype, dims in found]


def carried(dtype, shape, known, rows):
    if not shape:
        return 'scalar'
    if dtype == 'u32':
        return 'key'
    if dtype == 's32':
        return 'ids'
    if shape in (
        (rows, 16),
        (DEVICES, 16),
    ):  # pooled features, as wide as the tiny encoder, of all rows or those with noise
        return 'features'
    if tuple(sorted(shape)) in known:
        return 'parameter'
    return 'mean' if len(shape) == 1 else 'tokens'


@pytest.mark.parametrize(('name', 'sizes'), CASES)
def test_the_numbers_of_one_device(name, sizes):
    found, one = ran(name, sizes), ran(name, (1, 1, 1))
    np.testing.assert_allclose(found.losses, one.losses, rtol=1e-5)
    np.testing.assert_allclose(found.norms, one.norms, rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(found.state.params), jax.tree.leaves(one.state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('name', 'sizes'), CASES)
def test_no_more_is_sent_than_the_mesh_calls_for(name, sizes):
    for (kind, axes, what), times in ran(name, sizes).collectives.items():
        names = {what, 'parameter'} if what == 'features' else {what}  # parts of parameters may have that shape too
        allowed = SENT[axes] | {FEATURES}
        assert any((kind, name) in allowed for name in names), f'{times} x {kind} of {what} over {axes}'


def moved(found, kind, axis):
    """Bytes of parameters or their gradients that collectives of a kind carry along an axis of the mesh."""
    return sum(
        n
        for (each, axes, what), n in found.sent.items()
        if each == kind
        and axis in axes.split('+')
        and what in ('parameter', 'features')  # which may have the same shape
    )


def copy_of(found):
    """Bytes of the parameters as 'model' cuts them; and of the mean of all targets, for the loss of an answer that knows no more."""
    leaves = jax.tree.leaves(found.abstract.params)
    cut = [x.sharding.mesh.shape['model'] if 'model' in x.sharding.spec else 1 for x in leaves]
    return sum(4 * x.size // by for x, by in zip(leaves, cut, strict=True)), 4 * max(x.shape[-1] for x in leaves)


@pytest.mark.parametrize(('name', 'sizes'), CASES)
def test_each_gradient_is_summed_once_and_each_parameter_gathered_once(name, sizes):
    found = ran(name, sizes)
    copy, mean = copy_of(found)
    # Rows with noise and those without go through the model of umd apart, each with two uses of one table of positions.
    passes, tables = (2, 4 * 4 * 16 * 16) if name == 'umd' else (1, 0)
    teacher = copy if name == 'ijepa' else 0  # its encoder is gathered too
    for axis in ('data', 'fsdp'):
        assert moved(found, 'all-reduce', axis) <= passes * (copy + mean) + tables
        assert moved(found, 'all-gather', axis) <= copy + teacher + 4 * DEVICES * 16 + tables  # and the features


def test_micro_batches_sum_their_gradients_each_and_gather_parameters_once():
    one, two = ran('mae', BOTH), ran('mae', BOTH, micro_batches=2)
    for axis in ('data', 'fsdp'):
        assert moved(two, 'all-reduce', axis) == 2 * moved(one, 'all-reduce', axis) > 0
        assert moved(two, 'all-gather', axis) == moved(one, 'all-gather', axis)


def test_the_model_axis_sends_the_sums_of_its_products_and_no_more():
    """Forward, those of `out` and `fc2`, and backward, of `fc1` and of q, k and v: six a block, and two beside blocks."""
    found = ran('mae', ALL).collectives
    blocks = checks.tiny('mae').encoder.depth + checks.tiny('mae').terms.pixels.predictor.depth
    assert 6 * blocks <= found['all-reduce', 'model', 'tokens'] <= 6 * blocks + 2


def test_a_checkpoint_of_any_mesh_goes_on_on_any_other(tmp_path):
    meshes = [DATA, FSDP, BOTH, ALL]
    for i, sizes in enumerate(meshes):
        saved = Checkpoints(tmp_path / str(i))
        saved.save(STEPS, ran('mae', sizes).state, {})
        for other in meshes:
            target = ran('mae', other).abstract
            state, _ = saved.restore(target)
            jax.tree.map(lambda x, like: x.sharding == like.sharding or pytest.fail(f'{x.sharding}'), state, target)
            jax.tree.map(np.testing.assert_array_equal, state, ran('mae', sizes).state)
        saved.close()
