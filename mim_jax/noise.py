"""Gaussian noise by time: schedules of its level, what a network may answer, and how much each level counts.

A noised value is x = alpha clean + sigma noise, with (alpha, sigma) the level at time t in [0, 1], from data to noise. A network answers
some a clean + b noise; which one is a parametrisation, and x and the answer together give clean and noise again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.absorbing import uniform as in_turn
from mim_jax.masks.mask import per_row

# Schedules, laws of times in training, and grids of times in sampling.
__all__ = ['cosine', 'even', 'flow', 'karras', 'linear', 'log_normal', 'logit_normal', 'rooted', 'uniform']


class Schedule(NamedTuple):
    """Noise by time.

    Attributes:
        level: `t f32[...] -> (alpha f32[...], sigma f32[...])`.
        time: `sigma / alpha f32[...] -> t f32[...]`, the inverse.
        ends_in_noise: alpha is 0 at time 1.
    """

    level: Callable[[Array], tuple[Array, Array]]
    time: Callable[[Array], Array]
    ends_in_noise: bool = False


def cosine() -> Schedule:
    """alpha = cos(pi t / 2), without the offset of arXiv 2102.09672 and ending at 0.001: a network that answers noise says nothing of data at 0."""
    half = jnp.pi / 2 - 1e-3
    return Schedule(lambda t: (jnp.cos(half * t), jnp.sin(half * t)), lambda ratio: jnp.arctan(ratio) / half)


def linear(low: float = 0.1, high: float = 20.0) -> Schedule:
    """DDPM (arXiv 2006.11239) in continuous time (VP, 2011.13456): variance is added at a rate that grows linearly from `low` to `high`."""

    def level(t):
        log_alpha = -(t**2) * (high - low) / 4 - t * low / 2
        return jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha))

    def time(ratio):
        total = jnp.log1p(ratio**2)  # the variance added so far: t^2 (high - low) / 2 + t low
        return 2 * total / (low + jnp.sqrt(low**2 + 2 * (high - low) * total))

    return Schedule(level, time)


def flow() -> Schedule:
    """The straight line of flow matching (arXiv 2210.02747, 2209.03003): alpha = 1 - t, sigma = t."""
    return Schedule(lambda t: (1 - t, t), lambda ratio: ratio / (1 + ratio), ends_in_noise=True)


def karras(low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Schedule:
    """EDM (arXiv 2206.00364): alpha = 1, sigma from `low` to `high`, evenly in its rho-th root."""
    first, last = low ** (1 / rho), high ** (1 / rho)

    def level(t):
        return jnp.ones_like(t), (first + t * (last - first)) ** rho

    return Schedule(level, lambda ratio: (ratio ** (1 / rho) - first) / (last - first))


def uniform(key: Array, rows: int, schedule: Schedule) -> Array:
    """Times f32[rows] evenly over (0, 1], of low discrepancy. All laws of times take a key, or a key per row."""
    return in_turn(key, rows, low_discrepancy=True)


def logit_normal(key: Array, rows: int, schedule: Schedule, *, mean: float = 0.0, std: float = 1.0) -> Array:
    """Times whose logit is normal (arXiv 2403.03206)."""
    return jax.nn.sigmoid(mean + std * per_row(key, jax.random.normal, (rows,)))


def log_normal(key: Array, rows: int, schedule: Schedule, *, mean: float = -1.2, std: float = 1.2) -> Array:
    """Times at which the logarithm of sigma / alpha is normal (EDM, arXiv 2206.00364)."""
    return schedule.time(jnp.exp(mean + std * per_row(key, jax.random.normal, (rows,))))


def even(schedule: Schedule, steps: int) -> Array:
    """Times f32[steps + 1] of a sampler, evenly from 1 to 0."""
    return 1 - jnp.arange(steps + 1) / steps


def rooted(schedule: Schedule, steps: int, *, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Array:
    """Times f32[steps + 1] of a sampler at which sigma / alpha is that of `karras` evenly from 1 to 0, then 0 (arXiv 2206.00364)."""
    ratio = karras(low, high, rho).level(jnp.linspace(1, 0, steps))[1]
    return jnp.append(schedule.time(ratio), schedule.time(jnp.zeros(())))


def coefficients(answer: str, alpha: Array, sigma: Array, spread: float = 1.0) -> tuple[Array, Array]:
    """(a, b) of the answer a clean + b noise.

    Args:
        answer: 'noise' (DDPM, arXiv 2006.11239), 'clean', 'velocity' alpha noise - sigma clean (2202.00512), 'flow' noise - clean
            (2210.02747), or 'edm', what the network of EDM answers inside its preconditioning (2206.00364).
        spread: standard deviation of the data, for 'edm'.

    Raises:
        ValueError: unknown answer.
    """
    zero, one = jnp.zeros_like(alpha), jnp.ones_like(alpha)
    total = jnp.sqrt(sigma**2 + (alpha * spread) ** 2)
    known = dict(
        noise=(zero, one),
        clean=(one, zero),
        velocity=(-sigma, alpha),
        flow=(-one, one),
        edm=(sigma / (spread * total), -alpha * spread / total),
    )
    if answer not in known:
        raise ValueError(f'answer {answer!r} is not one of {", ".join(known)}')
    return known[answer]


def split(answer: Array, x: Array, level: tuple[Array, Array], ab: tuple[Array, Array]) -> tuple[Array, Array]:
    """(clean, noise) of noised x whose network answers `answer` = a clean + b noise; the numbers broadcast over x."""
    (alpha, sigma), (a, b) = level, ab
    determinant = alpha * b - sigma * a
    return (b * x - sigma * answer) / determinant, (alpha * answer - a * x) / determinant


def weight(kind: str, schedule: Schedule, t: Array, ab: tuple[Array, Array], gamma: float = 5.0) -> Array:
    """f32[...]: what the squared error of the answer counts for at times t.

    Args:
        kind: 'plain', 1; 'min_snr', that of clean times min(alpha^2 / sigma^2, gamma) (arXiv 2303.09556); 'elbo', the bound in nats
            (2107.00630): that of noise times half the rate at which the logarithm of alpha^2 / sigma^2 falls.
        ab: see `coefficients`.

    Raises:
        ValueError: unknown kind.
    """
    alpha, sigma = schedule.level(t)
    determinant = alpha * ab[1] - sigma * ab[0]
    if kind == 'plain':
        return jnp.ones_like(t)
    if kind == 'min_snr':
        return jnp.minimum((alpha / sigma) ** 2, gamma) * (sigma / determinant) ** 2
    if kind == 'elbo':
        rate = jax.jvp(lambda t: jnp.log(jnp.divide(*schedule.level(t))), (t,), (jnp.ones_like(t),))[1]
        return -rate * (alpha / determinant) ** 2
    raise ValueError(f"weight {kind!r} is not one of 'plain', 'min_snr', 'elbo'")
