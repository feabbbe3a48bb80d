"""The forward process of absorbing-state diffusion: every token is hidden with a probability that grows in time.

What a schedule says is the share of tokens hidden at time t in [0, 1], 1 - alpha(t) in the papers; 0 at 0 and 1 at 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Grid, Mask, fold, per_row, rank, size


class Schedule(NamedTuple):
    """`share(t)`, its inverse, and `rate(t)` = share'(t) / share(t), which weighs the loss: elementwise f32 -> f32."""

    share: Callable
    inverse: Callable
    rate: Callable


def schedule(name: str = 'linear', power: float = 1.0) -> Schedule:
    """'linear' t (MDLM's log-linear, arXiv 2406.07524); 'cosine' sin(pi t / 2) (MaskGIT, 2202.04200; MD4, 2406.04329); 'polynomial' t**power (MD4).

    Raises:
        ValueError: unknown name, or a power that is not above 0.
    """
    half = math.pi / 2
    if name == 'cosine':

        def rate(t):
            return jnp.maximum(half / jnp.tan(half * t), 0)

        return Schedule(lambda t: jnp.sin(half * t), lambda s: jnp.arcsin(s) / half, rate)
    if name not in ('linear', 'polynomial'):
        raise ValueError(f'schedule {name!r} is not one of linear, cosine, polynomial')
    if not power > 0:
        raise ValueError(f'schedule {name!r}, power={power}: it has to be above 0')
    power = 1.0 if name == 'linear' else power
    return Schedule(lambda t: t**power, lambda s: s ** (1 / power), lambda t: power / t)


def uniform(key: Array, rows: int, low_discrepancy: bool) -> Array:
    """f32[rows] in (0, 1]. Low discrepancy (arXiv 2107.00630): one draw for all rows, moved on by 1 / rows from each to the next."""
    if not low_discrepancy:
        return 1 - per_row(key, jax.random.uniform, (rows,))
    first = jax.random.uniform(key if key.ndim == 0 else key[0])
    return 1 - (first + jnp.arange(rows) / rows) % 1.0


def absorbing(
    key: Array,
    grid: Grid,
    *,
    schedule: str = 'linear',
    power: float = 1.0,
    by: str = 'time',
    steps: int = 0,
    eps: float = 1e-3,
    low_discrepancy: bool = True,
) -> Mask:
    """Hides as the forward process does at a random time; the weights make the cross-entropy of what is hidden a bound.

    The sum over tokens of weight * cross-entropy is, on average, the negative evidence lower bound (NELBO) in nats of a
    row; every weight of a hidden token of a row is the same. All tokens are asked.

    Args:
        key: one, or one per row (times of low discrepancy are drawn from the first).
        schedule, power: see `schedule`.
        by: 'time': a token is hidden or not by itself, with probability share(t) (MDLM, MD4). 'count': exactly n tokens are, n the
            share at a random time rounded up (MaskGIT; the bound in terms of counts is arXiv 2409.02908's). Its weights
            do not vary as much, and the bound is the same for a network that is not told the time.
        steps: of a discrete-time bound, which is above the continuous one; 0 = continuous. By time only.
        eps: between 0 and 1. Continuous time ends here with one step that reveals all that is left, so the bound holds exactly and
            weights stay below 1 / eps, or power / eps where that is more.
        low_discrepancy: times spread evenly over the rows.

    Returns:
        Mask with `level` f32[B], the expected share of hidden tokens.

    Raises:
        ValueError: unknown schedule or `by`, steps with counts, or an option out of range.
    """
    if by not in ('time', 'count') or (by == 'count' and steps):
        raise ValueError(f"absorbing: by={by!r}, steps={steps}: by is 'time' or 'count', and counts have no steps")
    if steps < 0 or steps != int(steps) or not 0 < eps < 1:
        raise ValueError(
            f'absorbing: steps={steps}, eps={eps}: steps is a whole number, 0 or more, and eps between 0 and 1'
        )
    kind = _schedule(schedule, power)
    b, n = grid[0], size(grid)
    u, noise = uniform(fold(key, 0), b, low_discrepancy), per_row(fold(key, 1), jax.random.uniform, (b, n))
    hidden, level, weight = _by_count(kind, u, noise) if by == 'count' else _by_time(kind, u, noise, steps, eps)
    asked = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (b, n))
    return Mask(hidden, asked, jnp.where(hidden, weight[:, None], 0.0), None, level)


_schedule = schedule  # the argument of `absorbing` has the same name


def _by_time(kind: Schedule, u: Array, noise: Array, steps: int, eps: float) -> tuple[Array, Array, Array]:
    """hidden bool[B, N], level f32[B], weight f32[B]."""
    if steps:
        t = jnp.ceil(u * steps) / steps
        level = kind.share(t)
        weight = steps * (level - kind.share(jnp.maximum(t - 1 / steps, 0.0))) / level
    else:
        level, weight = kind.share(jnp.maximum(u, eps)), jnp.where(u > eps, kind.rate(jnp.maximum(u, eps)), 1 / eps)
    return noise < level[:, None], level, weight


def _by_count(kind: Schedule, u: Array, noise: Array) -> tuple[Array, Array, Array]:
    """As `_by_time`. A count comes with probability p(n), and the bound sums over all counts the mean loss of a hidden token."""
    n = noise.shape[1]
    count = jnp.clip(jnp.ceil(kind.share(u) * n), 1, n)
    chance = kind.inverse(count / n) - kind.inverse((count - 1) / n)
    return rank(noise) < count[:, None], count / n, 1 / (count * chance)
