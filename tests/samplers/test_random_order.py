"""Tokens drawn in a random order from the conditionals of a known law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.samplers import random_order
from mim_jax.samplers.random_order import still_hidden

COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 1.5, -0.4], [0.3, -0.4, 0.7]])
MEAN = np.array([1.0, -2.0, 0.5])
ROWS = 40_000


def conditional(x, hidden):
    """(mean, variance) f32[B, N] of each token given those that are not hidden, by Gaussian elimination on what is known."""
    known = ~hidden

    def row(x, known):
        k = jnp.where(known[:, None] & known, COVARIANCE, jnp.eye(len(MEAN)))
        cross = COVARIANCE * known  # [N, known]
        gain = jnp.linalg.solve(k, cross.T).T
        return MEAN + gain @ jnp.where(known, x - MEAN, 0), jnp.diag(COVARIANCE) - (gain * cross).sum(-1)

    return jax.vmap(row)(x, known)


@pytest.fixture(scope='module')
def sample():
    def tell(x, hidden):
        return [z[..., None] for z in conditional(x[..., 0], hidden)]

    def draw(key, told, share):
        mean, variance = told
        return mean + jnp.sqrt(variance) * jax.random.normal(key, mean.shape)

    return jax.jit(
        lambda key, x, hidden, steps: random_order(key, tell, draw, x, hidden, steps=steps), static_argnums=3
    )


def test_one_at_a_time_it_is_the_joint_law(sample):
    x = sample(jax.random.key(0), jnp.zeros((ROWS, 3, 1)), jnp.ones((ROWS, 3), bool), 3)[..., 0]
    np.testing.assert_allclose(np.mean(x, 0), MEAN, atol=5 * (1.5 / ROWS) ** 0.5)
    np.testing.assert_allclose(np.cov(x, rowvar=False), COVARIANCE, atol=0.05)


def test_all_at_once_the_tokens_are_independent(sample):
    x = sample(jax.random.key(0), jnp.zeros((ROWS, 3, 1)), jnp.ones((ROWS, 3), bool), 1)[..., 0]
    np.testing.assert_allclose(np.cov(x, rowvar=False), np.diag(np.diag(COVARIANCE)), atol=0.05)


def test_what_is_known_stays_and_is_heeded(sample):
    given, hidden = jnp.full((ROWS, 3, 1), 2.0), jnp.broadcast_to(jnp.array([True, False, True]), (ROWS, 3))
    x = sample(jax.random.key(1), given, hidden, 12)[..., 0]
    assert (x[:, 1] == 2).all()
    mean = MEAN[[0, 2]] + COVARIANCE[[0, 2], 1] / 1.5 * (2.0 - MEAN[1])
    np.testing.assert_allclose(np.mean(x[:, [0, 2]], 0), mean, atol=0.02)


@pytest.mark.parametrize('steps', [1, 3, 7, 64])
@pytest.mark.parametrize('n', [1, 5, 16])
def test_every_token_is_drawn_once_and_later_steps_draw_more(n, steps):
    hidden = np.random.default_rng(0).random((4, n)) < [[1.0], [0.5], [1.0], [0.0]]

    def count(key, told, share):  # a token drawn in a step becomes that step's share
        return jnp.broadcast_to(share, (*told.shape[:2], 1))

    x = random_order(
        jax.random.key(0), lambda x, hidden: x, count, jnp.full((4, n, 1), -1.0), jnp.asarray(hidden), steps=steps
    )
    shares = np.asarray(x[..., 0])
    np.testing.assert_array_equal(shares > 0, hidden)
    if n >= 16 and steps == 3:
        np.testing.assert_array_equal(
            np.unique(shares[0], return_counts=True)[1], [3, 5, 8]
        )  # 16 cos(pi i / 6), rounded down, are left
    if n <= steps:
        assert len(np.unique(shares[0])) == n  # one in each step


@pytest.mark.parametrize(('n', 'steps', 'most'), [(256, 64, 7), (256, 256, 1), (64, 16, 6), (16, 16, 1), (3, 64, 1)])
def test_no_step_is_empty_while_tokens_are_left(n, steps, most):
    left = np.array(still_hidden(n, steps))
    np.testing.assert_array_equal(left[[0, -1], :], [np.arange(n + 1), np.zeros(n + 1)])
    drawn = left[:-1] - left[1:]
    assert drawn[:, n].max() == most
    empty = (drawn == 0) & (left[:-1] > 1)
    assert not empty.any()
