"""Noise schedules, parametrisations and weights against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mim_jax import noise
from tests import mixtures

SCHEDULES = ('cosine', 'linear', 'flow', 'karras')
ANSWERS = ('noise', 'clean', 'velocity', 'flow', 'edm')
T = jnp.linspace(0.02, 0.98, 49)
TURN = np.pi - 2e-3  # of the cosine schedule, twice its angle


@pytest.mark.parametrize('name', SCHEDULES)
def test_a_schedule_goes_from_data_to_noise_and_back(name):
    schedule = getattr(noise, name)()
    alpha, sigma = schedule.level(T)
    assert (jnp.diff(sigma / alpha) > 0).all()
    assert (schedule.level(jnp.ones(()))[0] == 0) == schedule.ends_in_noise
    np.testing.assert_allclose(schedule.time(sigma / alpha), T, atol=2e-5)
    if name in ('cosine', 'linear'):
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)


def test_the_linear_schedule_is_the_product_of_small_steps():
    betas = np.linspace(1e-4, 0.02, 1000)  # DDPM's, in f64
    kept = np.sqrt(np.cumprod(1 - betas))
    alpha, _ = noise.linear().level(jnp.arange(1, 1001) / 1000)
    np.testing.assert_allclose(alpha, kept, atol=2e-3)


def test_the_schedule_of_edm_is_its_grid():
    sigma = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(noise.karras().level(1 - jnp.arange(18) / 17)[1], sigma, rtol=1e-4)


@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('answer', ANSWERS)
def test_every_answer_gives_the_same_clean_and_noise(name, answer):
    schedule = getattr(noise, name)()
    level = schedule.level(T)
    rng = np.random.default_rng(0)
    clean, added = rng.standard_normal((2, len(T))).astype(np.float32)
    a, b = noise.coefficients(answer, *level, spread=0.5)
    x = level[0] * clean + level[1] * added
    got = noise.split(a * clean + b * added, x, level, (a, b))
    for z, want, hard in zip(got, (clean, added), (level[1] / level[0], level[0] / level[1]), strict=True):
        assert (np.abs(z - want) < 2e-5 * (1 + hard)).all()  # what is hard to see in x is hard to find


def test_the_answer_of_edm_is_that_of_its_preconditioning():
    sigma, d = np.geomspace(0.01, 50, 9), 0.5
    clean, added = np.random.default_rng(0).standard_normal((2, 9))
    skip, out = d**2 / (sigma**2 + d**2), sigma * d / np.sqrt(sigma**2 + d**2)
    inside = (clean - skip * (clean + sigma * added)) / out  # what the network has to say in D = skip x + out F
    a, b = noise.coefficients('edm', jnp.ones(9), jnp.asarray(sigma, jnp.float32), d)
    np.testing.assert_allclose(a * clean + b * added, inside, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(a**2 * d**2 + b**2, 1, rtol=1e-5)  # of unit variance at every level


@pytest.mark.parametrize('answer', ANSWERS)
def test_the_best_answer_is_what_the_best_denoiser_says(answer):
    """Least squares is minimal there: what is left has no correlation with any function of x. It has with another denoiser."""
    schedule, rows = noise.cosine(), 200_000
    rng = np.random.default_rng(0)
    clean, added = mixtures.draw(rng, rows), rng.standard_normal((rows, 2)).astype(np.float32)
    t = jnp.full(rows, 0.4)
    alpha, sigma = (z[:, None] for z in schedule.level(t))
    a, b = noise.coefficients(answer, alpha, sigma, spread=0.9)
    x = alpha * clean + sigma * added
    best, other = mixtures.denoise(schedule, x, t), mixtures.denoise(schedule, x, t + 0.05)

    def worst(guess):
        left = np.asarray(a * guess[0] + b * guess[1] - a * clean - b * added, np.float64)
        tests = [np.ones_like(x), x, np.tanh(3 * x), x[:, ::-1], np.cos(2 * x)]
        return max(np.abs((left * f).mean(0) / (left * f).std(0)).max() for f in tests) * rows**0.5

    assert worst(best) < 4 < worst(other)


@pytest.mark.parametrize('answer', ANSWERS)
def test_weights_are_of_the_error_in_clean_or_noise(answer):
    schedule = noise.cosine()
    alpha, sigma = (np.asarray(z, np.float64) for z in schedule.level(T))
    a, b = noise.coefficients(answer, *schedule.level(T))
    x, off = 0.3, 1e-3
    (clean, added), (clean2, added2) = (
        noise.split(jnp.full(len(T), y), x, schedule.level(T), (a, b)) for y in (0.2, 0.2 + off)
    )
    min_snr = np.minimum((alpha / sigma) ** 2, 5.0) * np.square(np.asarray(clean2 - clean, np.float64)) / off**2
    np.testing.assert_allclose(noise.weight('min_snr', schedule, T, (a, b)), min_snr, rtol=2e-2)
    rate = TURN / np.sin(TURN * np.asarray(T))  # of log tan(TURN t / 2)
    elbo = rate * np.square(np.asarray(added2 - added, np.float64)) / off**2
    np.testing.assert_allclose(noise.weight('elbo', schedule, T, (a, b)), elbo, rtol=2e-2)
    assert (noise.weight('plain', schedule, T, (a, b)) == 1).all()


def test_min_snr_is_that_of_its_paper():
    """arXiv 2303.09556, section 3.4: min(snr, 5) for clean, over snr for noise, over snr + 1 for velocity."""
    schedule = noise.cosine()
    snr = np.tan(TURN / 2 * np.asarray(T)) ** -2
    for answer, over in (('clean', 1), ('noise', snr), ('velocity', snr + 1)):
        found = noise.weight('min_snr', schedule, T, noise.coefficients(answer, *schedule.level(T)))
        np.testing.assert_allclose(found, np.minimum(snr, 5) / over, rtol=1e-4)


def test_times_have_the_laws_they_are_named_for():
    key, rows, schedule = jax.random.key(0), 4000, noise.karras()
    t = np.sort(noise.uniform(key, rows, schedule))
    assert (np.floor(t * rows) == np.arange(rows)).mean() > 0.99  # but for rounding
    logit = noise.logit_normal(key, rows, schedule, mean=0.5, std=0.8)
    assert stats.kstest(np.log(logit / (1 - logit)), 'norm', (0.5, 0.8)).pvalue > 1e-3
    sigma = schedule.level(noise.log_normal(key, rows, schedule))[1]
    assert stats.kstest(np.log(sigma), 'norm', (-1.2, 1.2)).pvalue > 1e-3


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'nosie' is not one of noise, clean"):
        noise.coefficients('nosie', T, T)
    with pytest.raises(ValueError, match="'snr' is not one of"):
        noise.weight('snr', noise.flow(), T, (T, T))
