"""Tokens that are numbers already: text, codes of an autoencoder."""

import math

import jax
import jax.numpy as jnp

from mim_jax.errors import InputError
from mim_jax.tokenizers.patches import coordinates
from mim_jax.tokenizers.tokens import Tokens, starts


def ids(
    batch: dict, *, key: str = 'ids', grid: tuple[int, ...] | None = None, native: tuple[int, ...] | None = None
) -> Tokens:
    """Tokens of batch[key] i32[B, N], each at its place.

    Args:
        batch: arrays by name; an optional 'segment' i32[B, N] tells the documents of a packed row apart, from 1 on; 0 is padding.
            Places are then counted from the start of each document.
        key: which array.
        grid: sizes whose product is N, of ids that lie on a grid; None = a line.
        native: as of `patches`.

    Raises:
        InputError: N is not the product of the grid.
    """
    x = batch[key].astype(jnp.int32)
    b, n = x.shape
    cells = tuple(grid or (n,))
    if math.prod(cells) != n:
        raise InputError(f'tokenizer.grid={cells} has {math.prod(cells)} places, but there are {n} ids in a row')
    segment = batch.get('segment')
    if segment is None:
        pos = coordinates(cells, native)
        return Tokens(x[..., None], jnp.broadcast_to(pos, (b, *pos.shape)), None, (b, *cells))
    pos = jnp.arange(n) - jax.lax.cummax(jnp.where(starts(segment), jnp.arange(n), 0), axis=1)
    return Tokens(x[..., None], pos[..., None].astype(jnp.float32), segment > 0, (b, *cells), segment)
