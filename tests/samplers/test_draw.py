"""Draws against their probabilities, and the flaw of 32-bit Gumbel noise that they do not have."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mim_jax.samplers import categorical, guide, sharpen, token
from mim_jax.samplers.draw import gumbel, inverse


@pytest.mark.parametrize('method', ['inverse', 'gumbel'])
@pytest.mark.parametrize('size', [2, 17, 200])
def test_frequencies_are_the_probabilities(method, size):
    logits = 2 * np.random.default_rng(size).standard_normal(size)
    p, draws = np.exp(logits) / np.exp(logits).sum(), 1_000_000 if method == 'inverse' and size < 100 else 100_000
    rows = jnp.broadcast_to(jnp.float32(logits), (draws, size))
    observed = np.bincount(jax.jit(partial(token, method=method))(jax.random.key(0), rows), minlength=size)
    assert stats.chisquare(observed, p * draws).pvalue > 1e-3
    cooler = p**1.1 / (p**1.1).sum()
    assert stats.chisquare(observed, cooler * draws).pvalue < 1e-3  # a temperature of 0.9 is told apart


@pytest.mark.parametrize('size', [3, 100, 5000])
def test_the_inverse_is_that_of_the_cumulative_distribution(size):
    rng = np.random.default_rng(0)
    logits, u = 3 * rng.standard_normal(size).astype(np.float32), rng.random(5000).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    edges = np.cumsum(p / p.sum())
    found = np.asarray(inverse(jnp.asarray(u), jnp.broadcast_to(logits, (len(u), size))))
    low, high = np.append(0, edges)[found], edges[found]
    assert (u >= low - 2e-6).all() and (u <= high + 2e-6).all()


@pytest.mark.parametrize('u', [0.0, 0.5, 1 - 2**-24])
def test_a_token_of_no_probability_is_never_drawn(u):
    logits = jnp.full((10, 9), -jnp.inf).at[jnp.arange(10), jnp.arange(10) % 9].set(0.3)
    np.testing.assert_array_equal(inverse(jnp.full(10, u), logits), jnp.arange(10) % 9)


def naive(key, logits):
    return (logits - jnp.log(-jnp.log(jax.random.uniform(key, logits.shape, minval=1e-38)))).argmax(-1)


@pytest.mark.slow
def test_gumbel_noise_of_32_bits_cuts_off_rare_tokens_and_ours_does_not():
    """65536 tokens share a probability of 1/500: the naive draw gives one ten times too seldom (arXiv 2409.02908)."""
    tail, share, draws, chunk = 65_536, 2e-3, 20_000, 100
    logits = jnp.log(jnp.append(1 - share, jnp.full(tail, share / tail)))

    def rare(draw):
        def some(key):
            return (draw(key, jnp.broadcast_to(logits, (chunk, tail + 1))) > 0).sum()

        return int(
            jax.jit(lambda keys: jax.lax.map(some, keys).sum())(jax.random.split(jax.random.key(1), draws // chunk))
        )

    expected = draws * share  # 40
    assert rare(naive) < expected / 4
    for draw in (categorical, gumbel):
        assert abs(rare(draw) - expected) < 3.3 * expected**0.5


def test_sharpening_keeps_the_likeliest():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))

    def kept(**how):
        return np.isfinite(np.asarray(sharpen(logits, **how)))[0].tolist()

    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.39) == [True, False, False, False]
    assert kept(top_p=0.41) == kept(top_p=0.69) == [True, True, False, False]
    assert kept(top_p=1e-6) == kept(top_p=0.0) == [True, False, False, False]
    assert kept(top_k=9) == [True] * 4
    np.testing.assert_allclose(sharpen(logits, temperature=0.5), 2 * logits, rtol=1e-6)


def test_temperature_0_takes_the_likeliest():
    logits = jax.random.normal(jax.random.key(0), (50, 7))
    np.testing.assert_array_equal(token(jax.random.key(1), logits, temperature=0), logits.argmax(-1))


def test_guidance_is_a_product_of_distributions():
    a, b = jax.random.normal(jax.random.key(0), (2, 4, 5))
    np.testing.assert_allclose(guide(a, b, 1.0), a, rtol=1e-5)
    np.testing.assert_allclose(guide(a, b, 0.0), b)
    np.testing.assert_allclose(guide(a, b, 3.0), a + 2 * (a - b), rtol=1e-5)
