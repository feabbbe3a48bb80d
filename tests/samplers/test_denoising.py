"""Samplers of noised data with the best denoiser of a mixture: their law, and how fast they come to it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mim_jax import noise, samplers
from tests import mixtures

ROWS = 20_000
EDM = partial(noise.rooted, high=80.0)


def sample(schedule, sampler, times, rows=ROWS, key=0, **options):
    denoise = partial(mixtures.denoise, schedule)
    run = jax.jit(lambda key, x: sampler(key, denoise, x, schedule=schedule, times=times, **options))
    return np.asarray(run(jax.random.key(key), jax.random.normal(jax.random.key(99), (rows, 2))))


def differs(x, y):
    """The least p-value of two-sample tests along twelve directions and of the radius, times their number."""
    angle = np.arange(12) * np.pi / 12
    views = [z @ np.stack([np.cos(angle), np.sin(angle)]) for z in (x, y)]
    views = [np.concatenate([v, np.hypot(*z.T)[:, None]], 1) for v, z in zip(views, (x, y), strict=True)]
    return min(stats.ks_2samp(a, b).pvalue for a, b in zip(*(v.T for v in views), strict=True)) * 13


@pytest.mark.parametrize(('schedule', 'sampler', 'grid', 'steps', 'options'), [
    ('cosine', 'ddim', 'even', 256, dict(eta=1.0)),
    ('linear', 'ddim', 'even', 512, dict(eta=1.0)),
    ('cosine', 'ddim', 'even', 256, dict()),
    ('flow', 'ode', 'even', 256, dict(order=1)),
    ('flow', 'ode', 'even', 64, dict(order=2)),
    ('cosine', 'ode', 'even', 64, dict(order=2)),
    ('karras', 'ode', 'rooted', 64, dict(variable='ratio')),
    ('cosine', 'ode', 'rooted', 64, dict(variable='ratio')),
], ids=str)  # fmt: skip
def test_samples_have_the_law_of_the_data(schedule, sampler, grid, steps, options):
    schedule, sampler, grid = getattr(noise, schedule)(), getattr(samplers, sampler), getattr(noise, grid)
    x = sample(schedule, sampler, grid(schedule, steps), **options)
    assert differs(x, mixtures.draw(np.random.default_rng(1), ROWS)) > 1e-3


def test_too_few_steps_are_told_from_the_data():
    schedule = noise.cosine()
    x = sample(schedule, samplers.ddim, noise.even(schedule, 4))
    assert differs(x, mixtures.draw(np.random.default_rng(1), ROWS)) < 1e-6


@pytest.mark.parametrize(('schedule', 'order', 'options'), [
    ('flow', 1, dict(order=1)), ('cosine', 1, dict(order=1)), ('flow', 2, dict()), ('cosine', 2, dict()),
    ('karras', 2, dict(variable='ratio')),
], ids=str)  # fmt: skip
def test_the_error_falls_with_the_order_in_the_number_of_steps(schedule, order, options):
    name, schedule = schedule, getattr(noise, schedule)()
    grid = partial(EDM, schedule, high=20.0) if name == 'karras' else partial(noise.even, schedule)
    exact = sample(schedule, samplers.ode, grid(2048), 200, **options | dict(order=2))
    errors = [
        np.sqrt(np.square(sample(schedule, samplers.ode, grid(n), 200, **options) - exact).mean())
        for n in (32, 64, 128)
    ]
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    assert abs(rates[-1] - order) < 0.3, (errors, rates)


def test_ddim_is_eulers_step_in_the_ratio():
    schedule = noise.cosine()
    times = EDM(schedule, 12)
    a = sample(schedule, samplers.ddim, times, 100)
    b = sample(schedule, samplers.ode, times, 100, order=1, variable='ratio')
    np.testing.assert_allclose(a, b, atol=2e-4)


def test_heun_is_the_algorithm_of_edm():
    """Algorithm 1 of arXiv 2206.00364 without churn, in NumPy."""
    schedule = noise.karras()
    sigma = np.append((80 ** (1 / 7) + np.arange(10) / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0)
    x = 80 * np.asarray(jax.random.normal(jax.random.key(99), (50, 2)), np.float64)

    def slope(x, sigma):
        t = jnp.full(50, schedule.time(jnp.float32(sigma)))
        return (x - np.asarray(mixtures.denoise(schedule, jnp.asarray(x, jnp.float32), t)[0], np.float64)) / sigma

    for now, then in zip(sigma, sigma[1:], strict=False):
        d = slope(x, now)
        ahead = x + (then - now) * d
        x = x + (then - now) * (d + slope(ahead, then)) / 2 if then else ahead
    found = sample(schedule, samplers.ode, noise.rooted(schedule, 10), 50, variable='ratio')
    np.testing.assert_allclose(found, x, atol=2e-3)


def test_what_is_known_stays_and_the_rest_follows_it():
    """Given the first coordinate at its right centre, the second is that of the right cluster."""
    schedule = noise.flow()
    values, where = jnp.broadcast_to(mixtures.CENTRES[1], (4000, 2)), jnp.array([[True, False]])
    x = sample(schedule, samplers.ddim, noise.even(schedule, 200), 4000, eta=1.0, pin=samplers.known(values, where))
    np.testing.assert_allclose(x[:, 0], mixtures.CENTRES[1, 0], atol=1e-5)
    assert (x[:, 1] < 0).mean() > 0.9  # a tenth of the data has it; what is left is the bias of replacement


def test_guidance_acts_in_its_interval():
    a, b = (lambda x, t: (x, 2 * x)), (lambda x, t: (3 * x, x))
    clean, added = samplers.guided(a, b, 2.0, (0.3, 0.6))(jnp.ones((2, 3)), jnp.array([0.1, 0.5]))
    np.testing.assert_allclose(clean, [[1] * 3, [-1] * 3])
    np.testing.assert_allclose(added, [[2] * 3, [3] * 3])


@pytest.mark.parametrize('steps', [18, 40])
def test_guidance_of_all_times_acts_at_the_first_and_the_last(steps):
    schedule = noise.karras()
    times = noise.rooted(schedule, steps)[:-1]
    clean, _ = samplers.guided(lambda x, t: (x, x), lambda x, t: (3 * x, x), 2.0)(jnp.ones((steps, 1)), times)
    np.testing.assert_array_equal(clean, -1)


@pytest.mark.parametrize('options', [dict(order=3), dict(variable='angle')], ids=str)
def test_an_unknown_way_is_refused(options):
    with pytest.raises(ValueError, match='ode takes order 1 or 2'):
        sample(noise.flow(), samplers.ode, jnp.linspace(1, 0, 3), 2, **options)
