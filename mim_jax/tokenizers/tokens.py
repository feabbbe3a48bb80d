"""Tokens: what is embedded, where it lies, and which of it is real."""

import inspect
from collections.abc import Callable

from flax import struct
from jax import Array

from mim_jax.masks.mask import Grid


@struct.dataclass
class Tokens:
    """Attributes:
    raw: f32[B, N, R], patches, points or ids: what is embedded and what is asked for.
    pos: f32[B, N, P], coordinates in units of the pretraining grid.
    valid: bool[B, N], False = padding, never seen and never asked; None where every token is real.
    grid: tokens along each axis, batch first (static).
    """

    raw: Array
    pos: Array
    valid: Array | None
    grid: Grid = struct.field(pytree_node=False)


def field(tokenizer: Callable) -> str:
    """The array of a batch that a tokenizer reads, its option `key`."""
    return inspect.signature(tokenizer).parameters['key'].default
