"""Against optax as a whole, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mim_jax import optim


def tree():
    keys = iter(jax.random.split(jax.random.key(0), 9))
    block = {'attention': {'qkv': {'kernel': (4, 4), 'bias': (4,)}}, 'norm': {'scale': (4,), 'bias': (4,)}}
    shapes = {
        'encoder': {
            'class_token': (1, 4),
            'embed': {'kernel': (3, 4)},
            'positions': {'table': (5, 4)},
            'block_0': block,
            'norm': {'scale': (4,)},
        },
        'predictor_pixels': {'out': {'kernel': (4, 3)}},
    }
    return jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


DECAYED = {'encoder/embed/kernel', 'encoder/block_0/attention/qkv/kernel', 'predictor_pixels/out/kernel'}


def test_norms_biases_positions_and_tokens_are_not_decayed():
    rules = {
        optim.path_str(path): rule
        for path, rule in jax.tree_util.tree_leaves_with_path(optim.by_path(tree(), optim.decay_rule))
    }
    assert {path for path, rule in rules.items() if rule} == DECAYED


@pytest.mark.parametrize('clip', [0.0, 0.1])
def test_steps_are_those_of_optax(clip):
    params = theirs = tree()
    mask = optim.by_path(params, lambda path: path in DECAYED)
    reference = optax.adamw(optax.constant_schedule(0.01), 0.9, 0.95, weight_decay=0.3, mask=mask)
    reference = optax.chain(optax.clip_by_global_norm(clip), reference) if clip else reference
    ours = optim.adamw(params, weight_decay=0.3, clip=clip)
    state, their_state = ours.init(params), reference.init(theirs)
    for i in range(3):
        grads = jax.tree.map(lambda p, i=i: jnp.sin(7 * p + i), params)
        updates, state = ours.update(grads, state, params)
        params = optim.apply(params, updates, jnp.float32(0.01))
        updates, their_state = reference.update(grads, their_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), params, theirs)


def test_layer_decay_is_that_of_beit():
    assert [
        optim.layer_of(path, 12)
        for path in ('encoder/embed/kernel', 'encoder/class_token', 'encoder/blocks/block_0/fc1/kernel')
    ] == [0, 0, 1]
    assert [
        optim.layer_of(path, 12) for path in ('encoder/blocks/block_11/fc1/bias', 'encoder/norm/scale', 'head/kernel')
    ] == [12, 13, 13]
    assert (
        optim.layer_rule('encoder/embed/kernel', 12, 0.5) == 0.5**13 and optim.layer_rule('head/kernel', 12, 0.5) == 1.0
    )
    params = tree()
    plain, decayed = (optim.adamw(params, layer_decay=decay, depth=1) for decay in (1.0, 0.5))
    a, b = (tx.update(params, tx.init(params), params)[0] for tx in (plain, decayed))
    np.testing.assert_allclose(b['encoder']['embed']['kernel'], a['encoder']['embed']['kernel'] / 4, rtol=1e-6)
    np.testing.assert_allclose(
        b['encoder']['block_0']['norm']['scale'], a['encoder']['block_0']['norm']['scale'] / 2, rtol=1e-6
    )
    np.testing.assert_allclose(
        b['predictor_pixels']['out']['kernel'], a['predictor_pixels']['out']['kernel'], rtol=1e-6
    )


def test_schedule_is_linear_then_cosine():
    rate = optim.schedule(lr=1.5e-4, batch_size=4096, total_steps=100, warmup_steps=10, end_lr=1e-5)
    peak = 1.5e-4 * 16
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, peak / 2, peak], rtol=1e-6)
    raised = optim.schedule(lr=1e-3, batch_size=4096, total_steps=100, warmup_steps=10, start_lr=2e-4, scale_lr_by=0)
    np.testing.assert_allclose([raised(0), raised(5), raised(10)], [2e-4, 6e-4, 1e-3], rtol=1e-6)
    step = np.arange(10, 101)
    np.testing.assert_allclose(
        rate(step), 1e-5 + (peak - 1e-5) * 0.5 * (1 + np.cos(np.pi * (step - 10) / 90)), rtol=1e-4
    )


@pytest.mark.parametrize('batch', [256, 1024])
def test_a_constant_rate_stays_at_the_peak_of_the_batch(batch):
    rate = optim.constant(lr=1e-4, batch_size=batch, total_steps=100, warmup_steps=10)
    np.testing.assert_allclose(
        [rate(s) for s in (0, 5, 10, 50, 100)], 1e-4 * batch / 256 * np.array([0, 0.5, 1, 1, 1]), rtol=1e-6
    )
    assert float(optim.constant(lr=0.5, batch_size=7, total_steps=9, scale_lr_by=0)(0)) == 0.5


def test_schedule_of_a_run_shorter_than_its_warmup():
    rate = optim.schedule(lr=1.0, batch_size=256, total_steps=5, warmup_steps=100)
    assert float(rate(4)) == 1.0
    assert float(optim.schedule(lr=0.5, batch_size=7, total_steps=1, scale_lr_by=0)(0)) == 0.5


def test_weight_decay_grows_by_a_cosine():
    params, still = dict(kernel=jnp.ones(2)), dict(kernel=jnp.zeros(2))
    tx = optim.adamw(params, weight_decay=0.04, end_weight_decay=0.4, total_steps=8)
    state, found = tx.init(params), []
    for _ in range(8):
        updates, state = tx.update(still, state, params)
        found.append(float(updates['kernel'][0]))
    np.testing.assert_allclose(found, 0.4 - 0.36 * 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8)), rtol=1e-5)
