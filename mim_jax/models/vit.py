"""The Transformer as a masked encoder of tokens: of patches (arXiv 2010.11929, 2111.06377), or of ids."""

import flax.linen as nn
import jax.numpy as jnp

from mim_jax.errors import InputError
from mim_jax.models.blocks import Blocks, LayerNorm, Modulation, in_width, modulate, xavier
from mim_jax.models.kernels import rotary
from mim_jax.models.positions import Positions

SIZES = {  # width, depth, heads
    'tiny': (192, 12, 3),
    's': (384, 12, 6),
    'b': (768, 12, 12),
    'l': (1024, 24, 16),
    'h': (1280, 32, 16),
    'g': (1408, 40, 16),  # arXiv 2303.16727
}
MLP_RATIOS = {'g': 48 / 11}  # where it is not 4
token_init = nn.initializers.normal(0.02)


class ViT(nn.Module):
    """encoder(raw, pos, valid, hidden, condition, train=) -> dtype[B, E + K, D]: class token and registers first (E of them).

    raw f32[B, K, R] values; pos f32[B, K, P] coordinates; valid bool[B, K] or None, False is never attended to, or
    bool[B, K, K] where each token sees others; hidden bool[B, K] or None, where True the embedding gives way to a learned
    mask token before positions are added; condition f32[B, D] or None: it modulates blocks, see `Block`, or with told='prefix' is added
    to class token and registers (MAR, arXiv 2406.11838). `size` names a row of `SIZES`; width,
    depth, heads and mlp_ratio override it; `token_std` is that of the mask token at first. `grid` is the native grid, which all positions but 'sincos' and 'rotary' need.
    Raises InputError for an unknown or incomplete shape.
    """

    size: str | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_ratio: float | None = None
    class_token: bool = True
    registers: int = 0
    drop_path: float = 0.0
    layer_scale: float | None = None
    positions: str = 'sincos'
    grid: tuple[int, ...] | None = None
    dtype: str = 'float32'
    scan: bool = False
    remat: str = 'none'
    eps: float = 1e-6
    token_std: float = 0.02
    told: str = 'blocks'

    @property
    def num_prefix(self):
        return int(self.class_token) + self.registers

    @property
    def shape(self):
        """(width, depth, heads)."""
        if self.size and self.size not in SIZES:
            raise InputError(f'ViT size {self.size!r} is not one of {", ".join(SIZES)}')
        given = (self.width, self.depth, self.heads)
        shape = tuple(g or s for g, s in zip(given, SIZES.get(self.size, (None,) * 3), strict=True))
        if None in shape:
            raise InputError('ViT needs a size, or width, depth and heads')
        if self.told != 'blocks' and not (self.told == 'prefix' and self.num_prefix):
            raise InputError(
                f"ViT told={self.told!r}: it has to be 'blocks', or 'prefix' with a class token or registers"
            )
        return shape

    def _embed(self, raw, width):
        return nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name='embed')(raw)

    @nn.compact
    def __call__(self, raw, pos, valid=None, hidden=None, condition=None, *, train=False):
        width, depth, heads = self.shape
        x, condition = self._embed(raw, width), in_width(condition, width, self.dtype)
        if hidden is not None:
            mask_token = self.param('mask_token', nn.initializers.normal(self.token_std), (width,))
            x = jnp.where(hidden[..., None], mask_token.astype(x.dtype), x)
        if self.positions != 'rotary':
            x = x + Positions(width, self.positions, self.grid, name='positions')(pos).astype(x.dtype)
        prefix = []
        if self.class_token:
            prefix.append(self.param('class_token', token_init, (1, width)))
        if self.registers:  # arXiv 2309.16588
            prefix.append(self.param('registers', token_init, (self.registers, width)))
        if prefix:
            prefix = jnp.concatenate(prefix).astype(x.dtype)
            prefix = jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape))
            if condition is not None and self.told == 'prefix':
                prefix, condition = prefix + condition[:, None].astype(x.dtype), None
            x = jnp.concatenate([prefix, x], 1)
            pos = jnp.pad(pos, [(0, 0), (self.num_prefix, 0), (0, 0)])
        turn = rotary(pos, width // heads) if self.positions == 'rotary' else None
        if valid is not None:
            before = [(0, 0), *[(self.num_prefix, 0)] * (valid.ndim - 1)]
            valid = jnp.pad(valid, before, constant_values=True)
        mlp_ratio = self.mlp_ratio or MLP_RATIOS.get(self.size, 4.0)
        x = Blocks(
            depth, heads, mlp_ratio, self.layer_scale, self.drop_path, self.eps, self.dtype, self.scan, self.remat,
            name='blocks',
        )(x, valid=valid, turn=turn, condition=condition, train=train)  # fmt: skip
        x = LayerNorm(self.eps, name='norm')(x)
        return x if condition is None else modulate(x, *Modulation(2, self.dtype, name='modulation')(condition))


class Transformer(ViT):
    """The same over ids: raw i32[B, K, 1] below `vocab`, embedded by a table; as text models have it, rotary positions and no prefix.

    Tokens begin with the scale of what the blocks add: with 0.02 what a token is drowns in the mean of its row, and a masked model,
    unlike an autoregressive one, needs thousands of steps to find its neighbours.
    """

    vocab: int = 0
    class_token: bool = False
    positions: str = 'rotary'
    token_std: float = 1.0

    def _embed(self, raw, width):
        return nn.Embed(
            self.vocab, width, dtype=self.dtype, embedding_init=nn.initializers.normal(self.token_std), name='embed'
        )(raw[..., 0])
