"""Tokens: what is embedded, where it lies, and which of it is real."""

import inspect
from collections.abc import Callable

import jax.numpy as jnp
from flax import struct
from jax import Array

from mim_jax.masks.mask import Grid


@struct.dataclass
class Tokens:
    """Attributes:
    raw: f32[B, N, R], patches or points, or i32[B, N, 1], ids: what is embedded and what is asked for.
    pos: f32[B, N, P], coordinates in units of the pretraining grid.
    valid: bool[B, N], False = padding, never seen and never asked; None where every token is real.
    grid: tokens along each axis, batch first (static).
    segment: i32[B, N], which document of a packed row a token belongs to, 0 = padding; None where a row is one.
    """

    raw: Array
    pos: Array
    valid: Array | None
    grid: Grid = struct.field(pytree_node=False)
    segment: Array | None = None

    @property
    def sees(self) -> Array | None:
        """Which tokens each attends to, bool[B, N, N] within documents, else `valid`."""
        if self.segment is None:
            return self.valid
        return (self.segment[:, :, None] == self.segment[:, None]) & self.valid[:, None]

    @property
    def first(self) -> Array:
        """bool[B, N]: where a document, or a row that is one, begins."""
        return starts(jnp.ones(self.raw.shape[:2], jnp.int32) if self.segment is None else self.segment)


def starts(segment: Array) -> Array:
    """bool[B, N]: the first token of each document of segment i32[B, N]."""
    return jnp.pad(segment[:, 1:] != segment[:, :-1], [(0, 0), (1, 0)], constant_values=True)


def field(tokenizer: Callable) -> str:
    """The array of a batch that a tokenizer reads, its option `key`."""
    return inspect.signature(tokenizer).parameters['key'].default
