"""A convolutional encoder and decoder of images, residual as those of VQGAN (arXiv 2012.09841) without their attention.

Between resolutions pixels go to channels and back (arXiv 1609.05158) beside a plain product, so that the only convolutions are
3 x 3 of stride one; norms are over channels, so that no place knows of another and any resolution will do.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mim_jax.errors import InputError
from mim_jax.models.blocks import LayerNorm


def space_to_depth(x: Array, factor: int) -> Array:
    """[B, H, W, C] -> [B, H / factor, W / factor, factor^2 C].

    Raises:
        InputError: H or W is no multiple of `factor`.
    """
    b, h, w, c = x.shape
    if h % factor or w % factor:
        raise InputError(f'{h} x {w} places do not divide into cells of {factor} x {factor}')
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return x.swapaxes(2, 3).reshape(b, h // factor, w // factor, -1)


def depth_to_space(x: Array, factor: int) -> Array:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, factor, factor, c // factor**2).swapaxes(2, 3)
    return x.reshape(b, h * factor, w * factor, -1)


def factors(patch: tuple[int, int], levels: int) -> list[int]:
    """By what each of `levels` resolutions is coarser than the finer one: 2 each, but the first, which starts from pixels.

    Raises:
        InputError: `patch` is not square, or no multiple of 2 ** (levels - 1).
    """
    side, halvings = patch[0], 2 ** (levels - 1)
    if len(patch) != 2 or side != patch[1] or side % halvings:
        raise InputError(
            f'patch {tuple(patch)}: with {levels} widths it has to be square, its side a multiple of {halvings}'
        )
    return [side // halvings] + [2] * (levels - 1)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), of 3 x 3 places (arXiv 1603.05027). dtype[B, h, w, C] -> the same."""

    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x):
        y = x
        for i in (1, 2):
            y = nn.silu(LayerNorm(name=f'norm{i}')(y))
            y = nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype, name=f'conv{i}')(y)
        return x + y


class ConvEncoder(nn.Module):
    """encoder(image f32[B, H, W, C]) -> dtype[B, H / patch, W / patch, widths[-1]].

    `widths` has the channels of each resolution, the finest first, `depth` residual blocks each; the coarsest has one place for
    each `patch` of pixels. Raises InputError where the patch and the number of widths, or the image and the patch do not fit.
    """

    widths: tuple[int, ...] = (128, 128, 256, 256)
    depth: int = 2
    patch: tuple[int, int] = (16, 16)
    dtype: str = 'float32'
    num_prefix = 0  # no class token, no registers
    class_token = False

    @nn.compact
    def __call__(self, image, *, train=False):
        cells = factors(self.patch, len(self.widths))
        if any(side % p for side, p in zip(image.shape[1:3], self.patch, strict=True)):
            raise InputError(f'images of {image.shape[1]} x {image.shape[2]} do not divide by the patch {self.patch}')
        x = image.astype(self.dtype)
        for i, (factor, width) in enumerate(zip(cells, self.widths, strict=True)):
            x = nn.Dense(width, dtype=self.dtype, name=f'down_{i}')(space_to_depth(x, factor))
            for j in range(self.depth):
                x = ResBlock(self.dtype, name=f'residual_{i}_{j}')(x)
        return LayerNorm(name='norm')(x)


class ConvDecoder(nn.Module):
    """decoder(z [B, h, w, D]) -> image f32[B, h * patch, w * patch, channels].

    `widths` as of `ConvEncoder`, but the coarsest first. Errors likewise.
    """

    widths: tuple[int, ...] = (256, 256, 128, 128)
    depth: int = 2
    patch: tuple[int, int] = (16, 16)
    channels: int = 3
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, z, *, train=False):
        dense = partial(nn.Dense, dtype=self.dtype)
        cells = factors(self.patch, len(self.widths))[::-1]
        x = dense(self.widths[0], name='stem')(z)
        for i, (factor, width) in enumerate(zip(cells, (*self.widths[1:], self.channels), strict=True)):
            for j in range(self.depth):
                x = ResBlock(self.dtype, name=f'residual_{i}_{j}')(x)
            last = i + 1 == len(cells)
            x = LayerNorm(name='norm')(x) if last else x
            x = depth_to_space(dense(width * factor**2, name=f'up_{i}')(x), factor)
        return x.astype(jnp.float32)
