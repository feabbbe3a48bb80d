"""Masked autoregression of continuous tokens: some are drawn in each step, told what is there already."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def random_order(key: Array, tell_fn: Callable, draw_fn: Callable, x: Array, hidden: Array, *, steps: int) -> Array:
    """Tokens x f32[B, N, R], of which those hidden bool[B, N] are drawn in a random order, few in the first steps and many in the last
    (MAR, arXiv 2406.11838): cos(pi i / 2 steps) of them are still hidden after step i.

    Args:
        tell_fn: `(x, hidden) -> arrays [B, N, ...]`, what is known of each token; hidden ones of x count for nothing.
        draw_fn: `(key, arrays [B, M, ...], share f32[]) -> f32[B, M, R]`, M tokens of each row; the share is that of the hidden ones that are known after the step.
        steps: calls of both.
    """
    n = x.shape[1]
    known = [1 - math.cos(math.pi / 2 * i / steps) for i in range(steps)] + [1.0]
    most = max(math.ceil(n * (b - a) + 1e-6) for a, b in zip(known[:-1], known[1:], strict=True))
    order = jnp.where(hidden, jax.random.uniform(jax.random.fold_in(key, steps), hidden.shape), jnp.inf)
    place = (jnp.argsort(jnp.argsort(order, -1), -1) + 0.5) / jnp.maximum(hidden.sum(-1, keepdims=True), 1)  # f32[B, N]

    def step(state, each):
        x, hidden = state
        i, share = each
        due = hidden & (place < share)
        index = jnp.argsort(~due, -1, stable=True)[:, :most]
        drawn = draw_fn(jax.random.fold_in(key, i), jax.tree.map(lambda z: _take(z, index), tell_fn(x, hidden)), share)
        drawn = _take(drawn, jnp.maximum(jnp.cumsum(due, -1) - 1, 0))  # each to its place
        return (jnp.where(due[..., None], drawn, x), hidden & ~due), None

    return jax.lax.scan(step, (x, hidden), (jnp.arange(steps), jnp.array(known[1:])))[0][0]


def _take(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index[..., None], 1)
