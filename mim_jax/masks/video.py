"""Masks over space and time: the first axis of the grid is time, the others are the plane of a frame."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Grid, Mask, fold, hide_highest, num_hidden, per_row, positions, take

CELL = 4  # a running cell is 2 x 2


def tube(key: Array, grid: Grid, *, ratio: float) -> Mask:
    """Hides the same random places of every frame, drawn for each row (VideoMAE, arXiv 2203.12602).

    Every frame of every row hides `int(ratio * places)`: the hidden count is rounded down, as in the published code,
    where `random` and MAE round the visible one down.

    Raises:
        ValueError: the grid has fewer than two axes, or the ratio leaves nothing visible or nothing hidden in a frame.
    """
    if len(grid) < 3:
        raise ValueError(f'tube masks need a grid of time and space, not {grid[1:]}: use random')
    b, frames, *plane = grid
    places = math.prod(plane)
    frame = hide_highest(
        per_row(key, jax.random.uniform, (b, places)), num_hidden((b, *plane), ratio, round_down='hidden')
    )
    target = jnp.arange(frames)[:, None] * places + frame.target[:, None]  # i32[B, frames, hidden]
    target = target.reshape(b, -1)
    return Mask(
        jnp.tile(frame.hidden, (1, frames)), target, jnp.ones(target.shape, jnp.float32), frame.num_visible * frames
    )


def running_cell(key: Array, grid: Grid, *, ratio: float, decoder_ratio: float = 0.5) -> Mask:
    """Dual masking: a tube mask for the encoder, and a running cell for the decoder (VideoMAE V2, arXiv 2303.16727).

    The decoder is asked for a share `1 - decoder_ratio` of all positions: of every 2 x 2 cell of a frame it skips the
    same cyclic run of `4 * decoder_ratio` places in row-major order, which moves by one place from frame to frame;
    where it starts is drawn for each row. `target` holds all these positions, the ones that the encoder sees as well,
    and `weight` is 1 where they are hidden from it and 0 elsewhere.

    Raises:
        ValueError: the grid is not (B, T, H, W); a ratio is out of range; or an odd H or W meets a T that is not a
            multiple of four, where rows would differ in their number of asked positions.
    """
    if len(grid) != 4:
        raise ValueError(f'running_cell masks need a grid of time, height and width, not {grid[1:]}: use tube')
    skipped = round(CELL * decoder_ratio)
    if skipped != CELL * decoder_ratio or not 0 < skipped < CELL:
        raise ValueError(f'running_cell: decoder_ratio {decoder_ratio} is not 1/4, 1/2 or 3/4; for 0 use tube')
    b, frames, h, w = grid
    if (h % 2 or w % 2) and frames % CELL:
        raise ValueError(
            f'running_cell: a {h}x{w} frame does not divide into 2x2 cells, which needs a number of frames of tokens '
            f'that is a multiple of {CELL}, not {frames}: change data.image_size, the frames or the patch'
        )
    start = per_row(fold(key, 1), lambda k, s: jax.random.randint(k, s, 0, CELL), (b, 1, 1))
    t, y, x = (jnp.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(grid[1:]))
    starts = jnp.arange(CELL).reshape(-1, 1, 1, 1)
    asked = (2 * (y % 2) + x % 2 + t + 1 + starts) % CELL >= skipped  # bool[CELL, T, H, W]
    each = positions(asked.reshape(CELL, -1), frames * h * w * (CELL - skipped) // CELL)  # i32[CELL, asked]
    # Rows choose among the four by a sum: positions row by row, or a gather, would cost more on a TPU.
    target = jnp.where(start == starts[..., 0, 0], each, 0).sum(1, dtype=jnp.int32)
    encoder = tube(key, grid, ratio=ratio)
    weight = take(encoder.hidden[:, : h * w], target % (h * w)).astype(jnp.float32)
    return encoder.replace(target=target, weight=weight)
