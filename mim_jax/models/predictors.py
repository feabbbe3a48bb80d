"""Predictors: from seen tokens and asked positions to values.

All share one signature, predictor(z, pos_seen, pos_asked, width, valid_seen=, valid_asked=, condition=) -> f32[B, T, width]:
z[B, E + K, D] encoder output (E prefix tokens first), pos_seen f32[B, K, P], pos_asked f32[B, T, P], width of what is
asked for, valid_* bool or None, condition f32[B, D] or None, which `Linear` leaves to the encoder.
"""

import flax.linen as nn
import jax.numpy as jnp

from mim_jax.models.blocks import Blocks, LayerNorm, Modulation, in_width, modulate, xavier
from mim_jax.models.positions import Positions
from mim_jax.models.vit import token_init


def _head(module, x, width, condition=None):
    """The last layer; told a condition, it starts at zero, as the gates do (DiT, arXiv 2212.09748)."""
    init = xavier if condition is None else nn.initializers.zeros
    return nn.Dense(width, dtype=module.dtype, kernel_init=init, name='head')(x).astype(jnp.float32)


def _blocks(module):
    return Blocks(
        module.depth, module.heads, module.mlp_ratio, eps=module.eps, dtype=module.dtype, scan=module.scan,
        remat=module.remat, name='blocks',
    )  # fmt: skip


class _Decoder(nn.Module):
    """What both Transformer decoders are made of. `grid` is the native grid, which all positions but 'sincos' need."""

    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    positions: str = 'sincos'
    grid: tuple[int, ...] | None = None
    dtype: str = 'float32'
    scan: bool = False
    remat: str = 'none'
    eps: float = 1e-6

    def _asked(self, positions, pos_asked):
        mask_token = self.param('mask_token', token_init, (self.width,))
        return (mask_token + positions(pos_asked)).astype(self.dtype)

    def _answer(self, x, condition, width):
        x = LayerNorm(self.eps, name='norm')(x)
        if condition is not None:
            x = modulate(x, *Modulation(2, self.dtype, name='modulation')(condition))
        return _head(self, x, width, condition)

    def _positions(self):
        return Positions(self.width, self.positions, self.grid, name='positions')


class SelfAttention(_Decoder):
    """The MAE decoder (arXiv 2111.06377): self-attention over prefix, seen tokens and a mask token per asked position.

    The sequence is never un-shuffled (attention does not depend on order), and the head reads asked tokens only, or with `seen`
    those that were seen and then the asked ones, f32[B, K + T, width].
    """

    seen: bool = False

    @nn.compact
    def __call__(self, z, pos_seen, pos_asked, width, *, valid_seen=None, valid_asked=None, condition=None):
        seen, asked = pos_seen.shape[1], pos_asked.shape[1]
        prefix = z.shape[1] - seen
        read = prefix + (0 if self.seen else seen)
        positions = self._positions()
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=xavier, name='embed')(z)
        at_seen = jnp.pad(positions(pos_seen), [(0, 0), (prefix, 0), (0, 0)])
        x += at_seen.astype(x.dtype)
        x = jnp.concatenate([x, self._asked(positions, pos_asked)], 1) if asked else x
        valid = _valid(z, prefix, seen, asked, valid_seen, valid_asked)
        condition = in_width(condition, self.width, self.dtype)
        return self._answer(_blocks(self)(x, valid=valid, condition=condition)[:, read:], condition, width)


def _valid(z, prefix, seen, asked, valid_seen, valid_asked):
    """bool[B, E + K + T], or None where nothing is padded."""
    if valid_seen is None and valid_asked is None:
        return None
    every = jnp.ones((z.shape[0], seen + asked), bool)
    valid_seen = every[:, :seen] if valid_seen is None else valid_seen
    valid_asked = every[:, :asked] if valid_asked is None else valid_asked
    return jnp.concatenate([jnp.ones((z.shape[0], prefix), bool), valid_seen, valid_asked], 1)


class CrossAttention(_Decoder):
    """The CrossMAE decoder (arXiv 2401.14391): mask tokens read z by cross-attention and never one another."""

    @nn.compact
    def __call__(self, z, pos_seen, pos_asked, width, *, valid_seen=None, valid_asked=None, condition=None):
        seen = pos_seen.shape[1]
        prefix = z.shape[1] - seen
        valid = None if valid_seen is None else _valid(z, prefix, seen, 0, valid_seen, None)
        x, condition = self._asked(self._positions(), pos_asked), in_width(condition, self.width, self.dtype)
        x = _blocks(self)(x, context=z.astype(self.dtype), valid=valid, condition=condition)
        return self._answer(x, condition, width)


class Linear(nn.Module):
    """One linear layer on the token at each asked position (SimMIM, arXiv 2111.09886).

    Asks only for positions that were seen (hidden by a mask token, say); any other gets a zero input. With `seen` it answers all that were
    seen, f32[B, K, width], and nothing may be asked for.
    """

    dtype: str = 'float32'
    seen: bool = False

    @nn.compact
    def __call__(self, z, pos_seen, pos_asked, width, *, valid_seen=None, valid_asked=None, condition=None):
        z = z[:, z.shape[1] - pos_seen.shape[1] :].astype(self.dtype)
        if self.seen:
            return _head(self, z, width, condition)
        same = jnp.all(pos_asked[:, :, None] == pos_seen[:, None], -1)  # bool[B, T, K]
        if valid_seen is not None:
            same &= valid_seen[:, None]
        return _head(self, jnp.einsum('btk,bkd->btd', same.astype(z.dtype), z), width, condition)
