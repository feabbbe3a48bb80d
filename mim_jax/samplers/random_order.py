"""Masked autoregression of continuous tokens: some are drawn in each step, told what is there already."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
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
    left = still_hidden(n, steps)
    most = int((left[:-1] - left[1:]).max())
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

    return jax.lax.scan(step, (x, hidden), (jnp.arange(steps), jnp.asarray(left[1:])))[0][0]


def still_hidden(n: int, steps: int) -> np.ndarray:
    """i32[steps + 1, n + 1]: how many of 0, 1, ..., n tokens are hidden before the first step and after each.

    cos(pi i / 2 steps) of them after step i, rounded down, and fewer than before while any are left; one stays for the last step.
    """
    left = [np.arange(n + 1, dtype=np.int32)]
    for i in range(1, steps):
        share = np.floor(left[0] * np.cos(np.pi / 2 * i / steps) + 1e-9).astype(np.int32)
        left.append(np.minimum(left[0], np.maximum(1, np.minimum(left[-1] - 1, share))))
    return np.stack([*left, np.zeros_like(left[0])])


def _take(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index[..., None], 1)
