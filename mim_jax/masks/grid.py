"""Masks over a grid of tokens. All take `(key, grid)` with a key, or a key per row, and the grid with batch first."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Grid, Mask, ask_hidden, asking, fold, hide_highest, num_hidden, per_row, rank, size, take


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
    inside, (y, x) = rectangles((h, w), top, left, tall, wide), (jnp.arange(h)[:, None], jnp.arange(w))
    # A token's score is the first block that covers it; within a block rows fill from a random side.
    first = jnp.where(inside.any(-3), jnp.argmax(inside, -3), num_blocks)  # i32[B, lead..., h, w]
    flip = corner(fold(key, 4), 1)[..., 0] < 0.5
    order = jnp.where(flip[..., None, None], y * w + x, plane - 1 - (y * w + x))
    return hide_highest(-(first * plane + order).reshape(b, -1).astype(jnp.float32), hide)


def multiblock(key: Array, grid: Grid, *, blocks: int = 4, scale: tuple[float, float] = (0.15, 0.2),
               aspect: tuple[float, float] = (0.75, 1.5), context: tuple[float, float] = (0.85, 1.0), keep: float = 0.28,
               least: int = 10) -> Mask:  # fmt: skip
    """Asks for `blocks` rectangles, each by itself, and shows a larger one without them (I-JEPA, arXiv 2301.08243).

    Each rectangle is drawn for itself, anywhere in the grid: its share of the tokens within `scale` and its height by its width within `aspect`,
    both uniform; the larger one has a share within `context` and the shape of the grid. The published code draws one size for all rectangles
    of a batch, by one number for share and shape, never reaches the last row and column, and cuts what is visible to the shortest row of
    the batch, from the end. Here what is visible is cut to a share `keep` of the tokens, about what is left there, from a random end. Where it
    would be fewer than `least` tokens, it overlaps with as few rectangles as need be, and is not asked for there.

    Raises:
        ValueError: the grid has not two axes, or an option is out of range.
    """
    if len(grid) != 3:
        raise ValueError(f'multiblock masks need a grid of height and width, not {grid[1:]}')
    for name, pair, most in (('scale', scale, 1), ('context', context, 1), ('aspect', aspect, math.inf)):
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
            bounds = 'above 0, at most 1' if most == 1 else 'above 0'
            raise ValueError(f'multiblock: {name}={tuple(pair)}: it has to be two numbers {bounds}, the lower first')
    if not 0 < keep < 1 or blocks < 1:
        raise ValueError(f'multiblock: keep={keep} has to be a share between 0 and 1, and blocks={blocks} at least 1')
    b, h, w = grid
    n, most = h * w, max(int(keep * h * w + 1e-6), 1)

    def uniform(data, low=0.0, high=1.0, count=blocks):  # f32[B, count]
        return low + (high - low) * per_row(fold(key, data), jax.random.uniform, (b, count))

    def corner(data, tall, wide):
        top, left = uniform(data, count=tall.shape[1]), uniform(data + 1, count=tall.shape[1])
        return jnp.floor(top * (h - tall + 1)), jnp.floor(left * (w - wide + 1))

    area, shape = n * uniform(0, *scale), uniform(1, *aspect)
    tall = jnp.clip(jnp.round(jnp.sqrt(area * shape)), 1, h)
    wide = jnp.clip(jnp.round(jnp.sqrt(area / shape)), 1, w)
    top, left = corner(2, tall, wide)
    side = jnp.sqrt(uniform(4, *context, count=1))
    large = jnp.clip(jnp.round(h * side), 1, h), jnp.clip(jnp.round(w * side), 1, w)
    around = rectangles((h, w), *corner(5, *large), *large).reshape(b, n)
    inside = rectangles((h, w), top, left, tall, wide).reshape(b, blocks, n)
    hidden = ~cut(outside(around, inside, min(least, most)), most, uniform(7, count=1) < 0.5)
    # slot i of a rectangle is its i-th token
    slot = jnp.arange(slots((h, w), scale[1], aspect))
    asked = slot < (tall * wide)[..., None]  # bool[B, blocks, L]
    top, left, wide = (each[..., None].astype(jnp.int32) for each in (top, left, wide))
    y, x = top + slot // wide, left + slot % wide
    target = jnp.where(asked, y * w + x, 0).reshape(b, -1)
    asked = asked.reshape(b, -1)
    weight = (asked & take(hidden, target)).astype(jnp.float32)
    return Mask(hidden, target, weight, None, most_visible=most, asked=asked, groups=blocks)


def outside(around: Array, inside: Array, least: int) -> Array:
    """bool[B, N]: `around` bool[B, N] less all of `inside` bool[B, M, N], or less the first ones as long as `least` tokens are left."""
    taken = jnp.cumsum(jnp.pad(inside, [(0, 0), (1, 0), (0, 0)]), 1) > 0  # by none, by the first, by the first two, ...
    left = around[:, None] & ~taken  # bool[B, M + 1, N]
    enough = (left.sum(-1) >= least).sum(-1, keepdims=True)
    chosen = jnp.arange(left.shape[1]) == jnp.maximum(enough - 1, 0)  # ever fewer are left
    return (left & chosen[..., None]).any(1)


def cut(chosen: Array, most: int, from_start: Array) -> Array:
    """bool[B, N]: of the True entries of bool[B, N] the first `most`, or the last where `from_start` bool[B, 1] is False."""
    count = jnp.cumsum(chosen, -1)
    return chosen & (jnp.where(from_start, count, count[:, -1:] - count + 1) <= most)


def rectangles(plane: tuple[int, int], top: Array, left: Array, tall: Array, wide: Array) -> Array:
    """bool[..., h, w]: which tokens of a plane lie within each rectangle, given by whole numbers f32[...]."""
    y, x = jnp.arange(plane[0])[:, None], jnp.arange(plane[1])
    top, left, tall, wide = (each[..., None, None] for each in (top, left, tall, wide))
    return (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)


def slots(plane: tuple[int, int], scale: float, aspect: tuple[float, float]) -> int:
    """Tokens of the largest rectangle of sides rounded to tokens, whose share is at most `scale` and whose height by width lies within `aspect`."""
    height, width = plane
    most = scale * height * width * (1 + 1e-6)
    return max(h * w for h in range(1, height + 1) for w in range(1, width + 1)
               if (h == 1 or w == 1 or (h - 0.5) * (w - 0.5) <= most)
               and (h == height or aspect[0] * (w - 0.5) <= h + 0.5) and (w == width or h - 0.5 <= aspect[1] * (w + 0.5)))  # fmt: skip


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
