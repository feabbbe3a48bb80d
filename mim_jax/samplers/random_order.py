"""Masked autoregression of continuous tokens: some are drawn in each step, told what is there already."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def random_order(key: Array, tell_fn: Callable, draw_fn: Callable, x: Array, hidden: Array, *, steps: int) -> Array:
    """Tokens x f32[B, N, R], of which those hidden bool[B, N] are drawn in a random order, few in the first steps and many in the last
    (MAR, arXiv 2406.11838): see `still_hidden`. As many steps as tokens draw one in each.

    Args:
        tell_fn: `(x, hidden) -> arrays [B, N, ...]`, what is known of each token; hidden ones of x count for nothing.
        draw_fn: `(key, arrays [B, M, ...], share f32[]) -> f32[B, M, R]`, M tokens of each row; the share is that of the hidden ones that are known after the step.
        steps: calls of both.
    """
    n = x.shape[1]
    table = still_hidden(n, steps)
    most = max(
        a - b for before, after in zip(table[:-1], table[1:], strict=True) for a, b in zip(before, after, strict=True)
    )
    count = hidden.sum(-1, keepdims=True)  # i32[B, 1]
    order = jnp.where(hidden, jax.random.uniform(jax.random.fold_in(key, steps), hidden.shape), jnp.inf)
    place = jnp.argsort(jnp.argsort(order, -1), -1)  # i32[B, N]

    def step(state, each):
        x, hidden = state
        i, left = each
        due = hidden & (place < count - left[count])
        index = jnp.argsort(~due, -1, stable=True)[:, :most]
        told = jax.tree.map(lambda z: _take(z, index), tell_fn(x, hidden))
        drawn = draw_fn(jax.random.fold_in(key, i), told, 1 - left[n] / n)
        drawn = _take(drawn, jnp.maximum(jnp.cumsum(due, -1) - 1, 0))  # each to its place
        return (jnp.where(due[..., None], drawn, x), hidden & ~due), None

    return jax.lax.scan(step, (x, hidden), (jnp.arange(steps), jnp.array(table[1:], jnp.int32)))[0][0]


def still_hidden(n: int, steps: int) -> list[list[int]]:
    """[steps + 1][n + 1]: how many of 0, 1, ..., n tokens are hidden before the first step and after each.

    cos(pi i / 2 steps) of them after step i, rounded down, and fewer than before while any are left; one stays for the last step.
    """
    left = [list(range(n + 1))]
    for i in range(1, steps):
        share = math.cos(math.pi / 2 * i / steps)
        fewer = [min(before - 1, math.floor(k * share + 1e-9)) for k, before in enumerate(left[-1])]
        left.append([min(k, max(1, each)) for k, each in enumerate(fewer)])
    return [*left, [0] * (n + 1)]


def _take(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index[..., None], 1)
