"""Patches of arrays with any number of spatial axes: images, videos, volumes, spectrograms, series."""

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from mim_jax.masks.mask import Grid
from mim_jax.tokenizers.tokens import Tokens


def patch_grid(shape: tuple[int, ...], patch: tuple[int, ...]) -> Grid:
    """Tokens along each axis of an array [B, *spatial, C], batch first; partial patches count.

    Raises:
        ValueError: the number of axes differs, or a patch is longer than its axis.
    """
    spatial = shape[1:-1]
    if len(spatial) != len(patch):
        raise ValueError(
            f'patch {tuple(patch)} has {len(patch)} axes but the array has {len(spatial)}: shape {tuple(shape)}'
        )
    if any(p > s for p, s in zip(patch, spatial, strict=True)):
        raise ValueError(
            f'patch {tuple(patch)} is larger than the input {spatial}: use a smaller tokenizer.patch or a larger input'
        )
    return (shape[0], *(-(-s // p) for s, p in zip(spatial, patch, strict=True)))


def patchify(x: Array, patch: tuple[int, ...]) -> Array:
    """x[B, *spatial, C] -> [B, N, prod(patch) * C], patches row-major, channels last inside a patch (as MAE).

    An axis that does not divide is padded by repeating its last row; `unpatchify` cuts it off again.

    Raises:
        ValueError: see `patch_grid`.
    """
    _, *spatial, channels = x.shape
    _, *cells = patch_grid(x.shape, patch)
    pad = [(0, n * p - s) for n, p, s in zip(cells, patch, spatial, strict=True)]
    if any(after for _, after in pad):
        x = jnp.pad(x, [(0, 0), *pad, (0, 0)], mode='edge')
    if len(cells) == 1 or channels == 1:
        return cut(x, patch)
    return lax.platform_dependent(x, tpu=partial(cut_last_first, patch=patch), default=partial(cut, patch=patch))


def cut(x: Array, patch: tuple[int, ...]) -> Array:
    """`patchify` where all axes divide."""
    b, *spatial, c = x.shape
    d, x = len(patch), x.reshape(b, *_split(spatial, patch), c)
    x = x.transpose(0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 2 * d + 1)
    return x.reshape(b, -1, math.prod(patch) * c)


def cut_last_first(x: Array, patch: tuple[int, ...]) -> Array:
    """The same of two axes or more and some channels, for TPUs, which lay such an array out by its last spatial axis: that one is cut while another
    lies last, or the columns of each patch would be padded to 128."""
    b, *spatial, c = x.shape
    *before, rows, columns = spatial
    width, d = patch[-1], len(patch)
    x = jnp.moveaxis(x, -3, -1).reshape(b, *before, columns // width, width * c, rows).swapaxes(-1, -2)
    x = x.reshape(b, *_split(before, patch[:-2]), columns // width, *_split([rows], patch[-2:-1]), width * c)
    cells = (*range(1, 2 * d - 4, 2), 2 * d - 2, 2 * d - 3)
    x = x.transpose(0, *cells, *range(2, 2 * d - 3, 2), 2 * d - 1, 2 * d)
    return x.reshape(b, -1, math.prod(patch) * c)


def _split(spatial, patch) -> list[int]:
    """Cells and pixels of a cell of each axis."""
    return [i for s, p in zip(spatial, patch, strict=True) for i in (s // p, p)]


def unpatchify(raw: Array, patch: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Exact inverse of `patchify`: [B, N, prod(patch) * C] -> `shape` = [B, *spatial, C], padding cut off.

    Raises:
        ValueError: the number of patches or their width does not belong to `shape`.
    """
    b, *spatial, c = shape
    _, *cells = patch_grid(shape, patch)
    if raw.shape != (b, math.prod(cells), math.prod(patch) * c):
        raise ValueError(f'{raw.shape} are not the {tuple(patch)} patches of an array {tuple(shape)}')
    d = len(cells)
    x = raw.reshape(b, *cells, *patch, c)
    x = x.transpose(0, *(i for a in range(d) for i in (1 + a, 1 + d + a)), 2 * d + 1)
    x = x.reshape(b, *(n * p for n, p in zip(cells, patch, strict=True)), c)
    return x[(slice(None), *(slice(s) for s in spatial))]


def patches(
    batch: dict, *, key: str = 'image', patch: tuple[int, ...] = (16, 16), native: tuple[int, ...] | None = None
) -> Tokens:
    """Tokens of batch[key] f32[B, *spatial, C]: raw patches, their coordinates and which of them are real.

    Args:
        batch: arrays by name; an optional 'size' i32[B, len(spatial)] tells the true extent of each row, and tokens
            wholly outside it are invalid.
        key: which array to cut.
        patch: length of a patch along each axis.
        native: grid on which positions were learned; coordinates are stretched to it, so that positions are resampled
            when the grid changes. None or an equal grid: the coordinates are the token indices.

    Raises:
        ValueError: see `patch_grid`.
    """
    x = batch[key]
    grid = patch_grid(x.shape, patch)
    b, *cells = grid
    pos = coordinates(cells, native)
    valid = None
    if 'size' in batch:
        valid = (coordinates(cells) * jnp.array(patch) < batch['size'][:, None, :]).all(-1)  # bool[B, N]
    return Tokens(patchify(x, patch), jnp.broadcast_to(pos, (b, *pos.shape)), valid, grid)


def coordinates(cells: Sequence[int], native: Sequence[int] | None = None) -> Array:
    """f32[N, P]: where the tokens of a grid lie, row-major: their indices, stretched to another grid `native` where it is given.

    Raises:
        ValueError: the grids differ in their number of axes.
    """
    pos = (
        jnp.stack(jnp.meshgrid(*map(jnp.arange, cells), indexing='ij'), -1).reshape(-1, len(cells)).astype(jnp.float32)
    )
    if native is None or tuple(native) == tuple(cells):
        return pos
    if len(native) != len(cells):
        raise ValueError(f'native grid {tuple(native)} and grid {tuple(cells)} differ in their number of axes')
    return (pos + 0.5) * (jnp.array(native) / jnp.array(cells)) - 0.5
