"""The mask of a batch and the few operations every mask and every objective shares."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

Grid = tuple[int, ...]  # tokens along each axis, batch first: (B, 8, 14, 14)


@struct.dataclass
class Mask:
    """What the encoder may not see, what is asked for, and how much each answer counts.

    Attributes:
        hidden: bool[B, N], True where the encoder may not look.
        target: i32[B, T], positions that are asked for, ascending in each of `groups`.
        weight: f32[B, T], loss weight of each asked position; 0 = ignore.
        num_visible: visible tokens of every row (static), or None where rows differ.
        level: f32[B], the share of tokens that a diffusion of them expects to be hidden; None = no such thing.
        most_visible: visible tokens of any row (static) where rows differ and the method drops the hidden ones; None = no bound is known.
        asked: bool[B, T], which of `target` are positions that are asked for, the others fill a row up; None = all.
        groups: equal parts of `target` (static), each of which is asked for by itself.
    """

    hidden: Array
    target: Array
    weight: Array
    num_visible: int | None = struct.field(pytree_node=False)
    level: Array | None = None
    most_visible: int | None = struct.field(pytree_node=False, default=None)
    asked: Array | None = None
    groups: int = struct.field(pytree_node=False, default=1)

    @property
    def visible(self) -> Array:
        """i32[B, K]: positions of the visible tokens, ascending; where rows differ, those of `most_visible`, see `filled`."""
        most = self.most_visible if self.num_visible is None else self.num_visible
        if most is None:
            raise ValueError(
                'rows of this mask differ in their number of visible tokens: hide with mask_token, not drop'
            )
        return positions(~self.hidden, most)

    @property
    def filled(self) -> Array | None:
        """bool[B, K]: which of `visible` are visible tokens, the first ones of each row; None = all."""
        if self.num_visible is not None:
            return None
        return jnp.arange(self.visible.shape[1]) < (~self.hidden).sum(-1, keepdims=True)


def plain(mask: Mask) -> Mask:
    """The mask, for methods that ask for all positions at once.

    Raises:
        ValueError: it asks for groups of them, or fills rows up.
    """
    if mask.groups != 1 or mask.asked is not None:
        raise ValueError(
            'this mask asks for groups of tokens one by one, as multiblock does: only MaskedPrediction can answer that'
        )
    return mask


def per_row(key: Array, draw: Callable[[Array, tuple[int, ...]], Array], shape: tuple[int, ...]) -> Array:
    """Draws `shape` = (B, ...) from one key, or row by row from B keys.

    With a key per row a sample's draw does not depend on how the batch is cut into devices or micro-batches.
    """
    if key.ndim == 0:
        return draw(key, shape)
    return jax.vmap(lambda k: draw(k, shape[1:]))(key)


def fold(key: Array, data: int) -> Array:
    """`jax.random.fold_in` for one key or a key per row."""
    return jax.random.fold_in(key, data) if key.ndim == 0 else jax.vmap(lambda k: jax.random.fold_in(k, data))(key)


def rank(score: Array) -> Array:
    """i32[B, N]: how many tokens of the row come before this one in ascending order of `score`; ties by position."""

    def count(score):  # the TPU compiler has no cheap sort: N*N comparisons on the vector unit cost less
        before = score[:, :, None] > score[:, None, :]  # bool[B, N, N]: j before i
        tie = (score[:, :, None] == score[:, None, :]) & jnp.tril(jnp.ones(2 * score.shape[1:], bool), -1)
        return (before | tie).sum(-1, dtype=jnp.int32)

    def sort(score):
        order = jnp.argsort(score, axis=-1, stable=True)
        back = jax.vmap(lambda order: jnp.zeros_like(order).at[order].set(jnp.arange(len(order))))
        return back(order).astype(jnp.int32)  # row by row, so that rows on several devices stay there

    return jax.lax.platform_dependent(score, tpu=count, default=sort)


def positions(chosen: Array, count: int) -> Array:
    """i32[B, count]: ascending positions of the True entries of bool[B, N], exactly `count` in each row."""
    n = chosen.shape[-1]

    def one_hot(chosen):
        place = jnp.cumsum(chosen, axis=-1) - 1  # i32[B, N]
        hit = (place[:, None, :] == jnp.arange(count)[:, None]) & chosen[:, None, :]  # bool[B, count, N]
        return jnp.where(hit, jnp.arange(n), 0).sum(-1, dtype=jnp.int32)

    def sort(chosen):
        return jnp.argsort(~chosen, axis=-1, stable=True)[:, :count].astype(jnp.int32)

    return jax.lax.platform_dependent(chosen, tpu=one_hot, default=sort)


def take(x: Array, index: Array) -> Array:
    """Rows `index` i32[B, K] of x[B, N, R] -> [B, K, R], bit-exact.

    On TPU a product with one-hot rows (the matrix unit is idle here, a row gather is not costed and its backward
    sorts); elsewhere a gather.
    """

    def one_hot(x, index):
        if x.dtype == jnp.bool_:
            return one_hot(x.astype(jnp.bfloat16), index) > 0
        select = jax.nn.one_hot(index, x.shape[1], dtype=x.dtype)  # [B, K, N]
        exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        return jnp.einsum('bkn,bnr->bkr', select, x, precision=exact)

    def gather(x, index):
        return jnp.take_along_axis(x, index[..., None], axis=1, mode='clip')

    if x.ndim == 2:
        return take(x[..., None], index)[..., 0]
    return jax.lax.platform_dependent(x, index, tpu=one_hot, default=gather)


def hide_highest(score: Array, num_hidden: int) -> Mask:
    """Hides the `num_hidden` tokens of highest score f32[B, N]: exact, static counts for a mask of any shape."""
    n = score.shape[-1]
    return ask_hidden(rank(score) >= n - num_hidden, num_hidden)


def ask_hidden(hidden: Array, num_hidden: int) -> Mask:
    """The mask that asks for exactly the hidden tokens, `num_hidden` in every row of bool[B, N]."""
    target = positions(hidden, num_hidden)
    return Mask(hidden, target, jnp.ones(target.shape, jnp.float32), hidden.shape[-1] - num_hidden)


def asking(hidden: Array) -> Mask:
    """The mask that hides any number of tokens bool[B, N] in each row and asks for all, with weight 1 where hidden."""
    asked = jnp.broadcast_to(jnp.arange(hidden.shape[1], dtype=jnp.int32), hidden.shape)
    return Mask(hidden, asked, hidden.astype(jnp.float32), None, most_visible=hidden.shape[1])


def size(grid: Grid) -> int:
    """Tokens of one row of the grid."""
    return math.prod(grid[1:])


def num_hidden(grid: Grid, ratio: float, round_down: str = 'visible') -> int:
    """Tokens hidden at this ratio; `round_down` the 'visible' count, as MAE's `int(n * (1 - ratio))`, or the 'hidden' one.

    Raises:
        ValueError: the ratio leaves nothing visible or nothing hidden.
    """
    n = size(grid)
    hidden = int(n * ratio + 1e-6) if round_down == 'hidden' else n - int(n * (1 - ratio) + 1e-6)
    if not 0 < hidden < n:
        raise ValueError(
            f'mask ratio {ratio} of a {"x".join(map(str, grid[1:]))} grid hides {hidden} of {n} tokens: at least one must stay visible and one be hidden'
        )
    return hidden
