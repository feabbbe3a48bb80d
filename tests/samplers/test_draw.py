"""Draws against their probabilities, and the flaw of 32-bit Gumbel noise that they do not have."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mim_jax.samplers import categorical, guide, sharpen, token
from mim_jax.samplers.draw import _locate, gumbel, inverse


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
def test_the_inverse_is_that_of_the_cumulative_distributions(size):
    rng = np.random.default_rng(0)
    logits, u = 3 * rng.standard_normal(size).astype(np.float32), rng.random((2, 5000)).astype(np.float32)
    p, width = np.exp(logits.astype(np.float64)), int(size**0.5)
    p = np.pad(p / p.sum(), (0, -size % width)).reshape(-1, width)
    found = np.asarray(inverse(jnp.asarray(u), jnp.broadcast_to(logits, (u.shape[1], size))))
    block, place = np.divmod(found, width)
    for share, edges, index in (
        (u[0], p.sum(1).cumsum()[None], block),
        (u[1], (p.cumsum(1) / p.sum(1, keepdims=True))[block], place),
    ):
        edges = np.pad(edges, [(0, 0), (1, 0)])
        low, high = (np.take_along_axis(edges, index.reshape(len(edges), -1) + i, 1).ravel() for i in (0, 1))
        assert (share >= low - 2e-6).all() and (share <= high + 2e-6).all()


@pytest.mark.parametrize('u', [0.0, 0.5, 1 - 2**-24])
def test_a_token_of_no_probability_is_never_drawn(u):
    logits = jnp.full((10, 9), -jnp.inf).at[jnp.arange(10), jnp.arange(10) % 9].set(0.3)
    np.testing.assert_array_equal(inverse(jnp.full((2, 10), u), logits), jnp.arange(10) % 9)


def test_nor_where_sums_are_taken_in_parallel(monkeypatch):
    monkeypatch.setattr(jnp, 'cumsum', lambda x, axis: jax.lax.associative_scan(jnp.add, x, axis=axis))
    rng = np.random.default_rng(0)
    p = rng.random((200, 150)) * (rng.random((200, 150)) < 0.2)
    mass = jnp.asarray(p, jnp.float32)
    edges, locate = jnp.cumsum(mass, -1), jax.jit(_locate)
    for share in (edges / edges[:, -1:]).T:
        index = locate(jnp.minimum(share, 1 - 2**-24), mass)
        assert (p[np.arange(200), index] > 0).all()


def test_every_rare_token_can_be_drawn():
    """4096 tokens share 2e-4, of which a uniform number of 23 bits has but 1678 values."""
    tail, share, draws = 4096, 2e-4, 8000
    logits = jnp.broadcast_to(jnp.log(jnp.append(1 - share, jnp.full(tail, share / tail))), (draws, tail + 1))
    u = jax.random.uniform(jax.random.key(0), (2, draws)).at[0].multiply(share).at[0].add(1 - share)
    found = np.unique(jax.jit(inverse)(u, logits))
    expected = tail * -np.expm1(-draws / tail)  # 3515
    assert abs((found > 0).sum() - expected) < 100


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
