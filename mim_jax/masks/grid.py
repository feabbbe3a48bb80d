"""Masks over a grid of tokens. All take `(key, grid)` with a key, or a key per row, and the grid with batch first."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Grid, Mask, ask_hidden, asking, fold, hide_highest, num_hidden, per_row, rank, size


def random(key: Array, grid: Grid, *, ratio: float) -> Mask:
    """Hides a uniform random share of the tokens, drawn for each row (MAE, arXiv 2111.06377).

    Raises:
        ValueError: the ratio leaves nothing visible or nothing hidden.
    """
    return hide_highest(per_row(key, jax.random.uniform, (grid[0], size(grid))), num_hidden(grid, ratio))


def varying(key: Array, grid: Grid, *, low: float = 0.7, mean: float = 1.0, std: float = 0.25) -> Mask:
    """Hides a random share of each row, normal around `mean` and cut to [low, 1], rounded up (MAR, arXiv 2406.11838; MAGE, 2211.09117). All tokens are asked.

    Raises:
        ValueError: low is not within (0, 1].
    """
    if not 0 < low <= 1:
        raise ValueError(f'varying: low={low} is no share of the tokens, above 0 and at most 1')
    b, n = grid[0], size(grid)
    within = dict(lower=(low - mean) / std, upper=(1 - mean) / std)
    normal = per_row(fold(key, 0), lambda key, shape: jax.random.truncated_normal(key, shape=shape, **within), (b,))
    count = jnp.clip(jnp.ceil(n * (mean + std * normal)), math.ceil(n * low), n)
    hidden = rank(per_row(fold(key, 1), jax.random.uniform, (b, n))) < count[:, None]
    return asking(hidden).replace(most_visible=n - math.ceil(n * low))


def nothing(key: Array, grid: Grid) -> Mask:
    """Hides no token and asks for all, for methods that corrupt their input in another way."""
    hidden = jnp.zeros((grid[0], size(grid)), bool)
    asked = jnp.broadcast_to(jnp.arange(size(grid), dtype=jnp.int32), hidden.shape)
    return Mask(hidden, asked, jnp.ones(hidden.shape), size(grid))


def block(
    key: Array, grid: Grid, *, ratio: float, min_size: int = 4, aspect: tuple[float, float] = (0.3, 10 / 3)
) -> Mask:
    """Hides random rectangles until the share is met (blockwise masking of BEiT, arXiv 2106.08254), over the last two axes.

    Rectangles have at least `min_size` tokens and aspect ratios between the two of `aspect`, log-uniform. BEiT
    stops when the share is passed; here the last rectangle is cut at a random side so that every row hides the same, exact count.

    Raises:
        ValueError: the grid has fewer than two axes, or the ratio leaves nothing visible or hidden.
    """
    if len(grid) < 3:
        raise ValueError(f'block masks need a grid of two axes or more, not {grid[1:]}: use random')
    b, *lead, h, w = grid
    hide = num_hidden(grid, ratio)
    plane = h * w
    num_blocks = 32  # enough to reach any share below 1; later blocks only break ties

    def corner(key, high):  # f32[B, lead..., blocks]
        return per_row(key, jax.random.uniform, (b, *lead, num_blocks)) * high

    low = min(min_size, plane)
    area = low + corner(fold(key, 0), max(ratio * plane - low, 0))
    shape = jnp.exp(jnp.log(aspect[0]) + corner(fold(key, 1), jnp.log(aspect[1] / aspect[0])))
    tall = jnp.clip(jnp.round(jnp.sqrt(area * shape)), 1, h)
    wide = jnp.clip(jnp.round(jnp.sqrt(area / shape)), 1, w)
    top = jnp.floor(corner(fold(key, 2), 1) * (h - tall + 1))
    left = jnp.floor(corner(fold(key, 3), 1) * (w - wide + 1))
    y, x = jnp.arange(h)[:, None], jnp.arange(w)
    inside = ((y >= top[..., None, None]) & (y < (top + tall)[..., None, None])
              & (x >= left[..., None, None]) & (x < (left + wide)[..., None, None]))  # fmt: skip
    # A token's score is the first block that covers it; within a block rows fill from a random side.
    first = jnp.where(inside.any(-3), jnp.argmax(inside, -3), num_blocks)  # i32[B, lead..., h, w]
    flip = corner(fold(key, 4), 1)[..., 0] < 0.5
    order = jnp.where(flip[..., None, None], y * w + x, plane - 1 - (y * w + x))
    return hide_highest(-(first * plane + order).reshape(b, -1).astype(jnp.float32), hide)


def grid(key: Array, grid: Grid, *, stride: int = 2) -> Mask:
    """Keeps one token of every `stride` x ... x `stride` cell, the same for all cells: MAE's grid-wise sampling (arXiv 2111.06377).

    The kept corner is drawn for each row.

    Raises:
        ValueError: an axis of the grid is not a multiple of the stride.
    """
    b, *axes = grid
    if any(n % stride for n in axes):
        raise ValueError(f'grid mask: stride {stride} does not divide the token grid {tuple(axes)}')
    corner = per_row(key, lambda k, s: jax.random.randint(k, s, 0, stride), (b, len(axes)))  # i32[B, P]
    kept = jnp.ones((b, *axes), bool)
    for axis, n in enumerate(axes):
        along = (1,) * (axis + 1) + (n,) + (1,) * (len(axes) - axis - 1)
        kept &= (jnp.arange(n) % stride).reshape(along) == corner[:, axis].reshape((b,) + (1,) * len(axes))
    return ask_hidden(~kept.reshape(b, -1), size(grid) - size(grid) // stride ** len(axes))
