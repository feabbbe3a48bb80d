"""One train step: accumulation, skipped steps, moving average, randomness per row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mim_jax import optim, step

ROWS, WIDTH = 8, 3


def loss(params, batch, keys, teacher=None):
    """A linear model with noise of its own for every row."""
    noise = jax.vmap(lambda k: jax.random.normal(k, (WIDTH,)))(keys)
    out = (batch['image'] + 0.1 * noise) @ params['w'] + params['b']
    return jnp.square(out - batch['label']).mean(), dict(
        baseline=jnp.square(batch['label']).mean(), features=batch['image']
    )


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return dict(
        image=rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        label=rng.normal(size=ROWS).astype(np.float32),
        valid=np.ones(ROWS, bool),
    )


def fresh(ema=False):
    params = dict(b=jnp.zeros(()), w=jnp.ones(WIDTH))
    tx = optim.adamw(params, weight_decay=0.1)
    return step.TrainState(jnp.int32(0), params, params if ema else None, None, tx.init(params)), tx


def stepper(tx, **options):
    return jax.jit(partial(step.train_step, seed=1, loss=loss, tx=tx, schedule=optax.constant_schedule(0.1), **options))


@pytest.mark.parametrize('accumulate', [2, 4, 8])
def test_accumulation_changes_nothing(batch, accumulate):
    state, tx = fresh()
    whole, one = stepper(tx)(state, batch, 1.0)
    parts, many = stepper(tx, accumulate=accumulate)(state, batch, 1.0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), parts.params, whole.params)
    for name in ('loss', 'grad_norm', 'baseline', 'lr'):
        np.testing.assert_allclose(many[name], one[name], rtol=1e-5)
    assert many['features'].shape == (ROWS // accumulate, WIDTH)


def test_a_row_has_its_noise_wherever_it_is_computed():
    keys = step.row_keys(3, jnp.int32(5), 8)
    np.testing.assert_array_equal(jax.random.key_data(keys[:4]), jax.random.key_data(step.row_keys(3, jnp.int32(5), 4)))
    everyone = np.concatenate(
        [jax.random.key_data(step.row_keys(seed, jnp.int32(i), 8)) for seed in (0, 1) for i in (0, 1)]
    )
    assert len(np.unique(everyone, axis=0)) == 32


@pytest.mark.parametrize('where', ['image', 'label'])
def test_a_non_finite_step_changes_nothing_but_the_count(batch, where):
    state, tx = fresh(ema=True)
    state, _ = stepper(tx, ema=0.9)(state, batch, 1.0)
    batch[where][2] = np.inf
    after, metrics = stepper(tx, ema=0.9)(state, batch, 1.0)
    assert not metrics['finite'] and int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=0), state.replace(step=0))
    bad = ~np.isfinite(np.asarray(metrics['leaf_norms']))
    assert bad.any() and len(bad) == 2


def test_learning_rate_is_scaled_and_the_average_follows(batch):
    state, tx = fresh(ema=True)
    one, metrics = stepper(tx, ema=0.75)(state, batch, 1.0)
    half, halved = stepper(tx, ema=0.75)(state, batch, 0.5)
    np.testing.assert_allclose([metrics['lr'], halved['lr']], [0.1, 0.05], rtol=1e-6)
    np.testing.assert_allclose(half.params['w'] - 1, (one.params['w'] - 1) / 2, rtol=1e-4)
    np.testing.assert_allclose(one.ema['w'], 0.75 * state.params['w'] + 0.25 * one.params['w'], rtol=1e-6)


def test_features_are_a_few_rows(batch):
    state, tx = fresh()
    many = {k: np.tile(v, (64, *[1] * (v.ndim - 1))) for k, v in batch.items()}
    assert stepper(tx)(state, many, 1.0)[1]['features'].shape == (step.KEPT_FEATURES, WIDTH)
