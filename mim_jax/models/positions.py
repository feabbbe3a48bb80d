"""Position embeddings of any number of axes, evaluated at coordinates.

Coordinates are in units of the native (pretraining) grid and may be fractional where the grid has changed, so both
kinds resample by themselves and are the identity where it has not.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from mim_jax.errors import InputError


def sincos(pos, width):
    """Fixed sine-cosine embedding; equals MAE's `get_2d_sincos_pos_embed` for two axes (arXiv 2111.06377).

    pos f32[..., P] -> f32[..., width]. Each axis takes width // (2 P) sines, then as many cosines, the LAST axis
    first; what does not divide is zero.
    """
    axes = pos.shape[-1]
    count = width // (2 * axes)
    omega = 10000.0 ** -(jnp.arange(count, dtype=jnp.float32) / count)
    angle = pos[..., ::-1, None] * omega  # f32[..., P, count]
    embedding = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
    embedding = embedding.reshape(*pos.shape[:-1], 2 * axes * count)
    return jnp.pad(embedding, [(0, 0)] * (pos.ndim - 1) + [(0, width - 2 * axes * count)])


def cubic_weights(coordinate, size):
    """Keys cubic (a = -0.5) weights of `size` samples at coordinates f32[...] -> f32[..., size], each row sums to 1.

    Equals `jax.image.resize(..., 'cubic', antialias=False)`; one-hot at integer coordinates. Coordinates are clipped
    to the extent of the samples, [-0.5, size - 0.5].
    """
    coordinate = jnp.clip(coordinate, -0.5, size - 0.5)
    x = jnp.abs(coordinate[..., None] - jnp.arange(size, dtype=jnp.float32))
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = jnp.where(x < 1, near, jnp.where(x < 2, far, 0))
    return weights / jnp.sum(weights, -1, keepdims=True)


class Positions(nn.Module):
    """pos f32[B, K, P] -> f32[B, K, width]. Kinds: 'sincos', or 'learned' with a table over the native `grid`."""

    width: int
    kind: str = 'sincos'
    grid: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, pos):
        if self.kind == 'sincos':
            return sincos(pos, self.width)
        if self.kind != 'learned':
            raise InputError(f"positions {self.kind!r} is not one of 'sincos', 'learned'")
        if self.grid is None or len(self.grid) != pos.shape[-1]:
            raise InputError(f'learned positions need the native grid, {pos.shape[-1]} sizes: got grid={self.grid}')
        table = self.param('table', nn.initializers.normal(0.02), (*self.grid, self.width))
        weights = jnp.ones((*pos.shape[:-1], 1), jnp.float32)
        for axis, size in enumerate(self.grid):
            weights = weights[..., None] * cubic_weights(pos[..., axis], size)[..., None, :]
            weights = weights.reshape(*pos.shape[:-1], -1)  # f32[B, K, product of sizes so far]
        return weights @ table.reshape(math.prod(self.grid), self.width)
