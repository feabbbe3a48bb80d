"""Position embeddings of any number of axes, evaluated at coordinates.

Coordinates are in units of the native (pretraining) grid and may be fractional where the grid has changed, so all
kinds resample by themselves and are the identity where it has not.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from mim_jax.errors import InputError

KINDS = ('sincos', 'sinusoid', 'learned', 'separable')


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


def sinusoid(pos, width, grid):
    """The table of the original Transformer (arXiv 1706.03762) over the row-major index of `grid`: VideoMAE's positions.

    pos f32[..., P] -> f32[..., width]: sines in the even columns, cosines in the odd. Between whole coordinates it is
    the linear blend of the 2**P rows around; coordinates are clipped to [0, size - 1].

    Raises:
        InputError: the grid has not P sizes.
    """
    check_grid('sinusoid', grid, pos)
    omega = [10000.0 ** (-2 * j / width) for j in range((width + 1) // 2)]  # radians per step of the index
    strides = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    pos = jnp.clip(pos, 0, jnp.array(grid, jnp.float32) - 1)
    low = jnp.floor(pos)
    index = (low.astype(jnp.int32) * jnp.array(strides)).sum(-1)
    sin, cos = turn(index[..., None], omega)
    # A row is exp(i omega index) with index = sum of stride * coordinate, so the blend is a product over the axes.
    for axis, stride in enumerate(strides):
        share = (pos - low)[..., axis, None]
        real = 1 + share * jnp.array([math.cos(w * stride) - 1 for w in omega])
        imaginary = share * jnp.array([math.sin(w * stride) for w in omega])
        sin, cos = sin * real + cos * imaginary, cos * real - sin * imaginary
    return jnp.stack([sin, cos], -1).reshape(*pos.shape[:-1], -1)[..., :width]


def turn(index, omega):
    """Sine and cosine of index * omega for i32[...] and floats [count], to f32 accuracy however large the angle.

    Whole turns drop out in integer arithmetic: a product in f32 would be off by 1e-4 at an index of 2000.
    """
    turns = [w / (2 * math.pi) for w in omega]
    coarse = [round(t * 2**32) for t in turns]  # in units of 2**-32 turns
    fine = [t - c / 2**32 for t, c in zip(turns, coarse, strict=True)]
    wrapped = index * jnp.array(coarse, jnp.int32)  # overflow is what takes the whole turns away
    angle = 2 * math.pi * (wrapped.astype(jnp.float32) * 2.0**-32 + index.astype(jnp.float32) * jnp.array(fine))
    return jnp.sin(angle), jnp.cos(angle)


def resample(table, pos):
    """Rows of table f32[*sizes, width] at pos f32[..., P] by cubic interpolation -> f32[..., width]."""
    *sizes, width = table.shape
    weights = jnp.ones((*pos.shape[:-1], 1), jnp.float32)
    for axis, size in enumerate(sizes):
        weights = weights[..., None] * cubic_weights(pos[..., axis], size)[..., None, :]
        weights = weights.reshape(*pos.shape[:-1], -1)  # f32[..., product of sizes so far]
    return weights @ table.reshape(math.prod(sizes), width)


def check_grid(kind, grid, pos):
    if not grid or len(grid) != pos.shape[-1]:
        raise InputError(f'{kind} positions need the native grid, {pos.shape[-1]} sizes: got grid={grid}')


class Positions(nn.Module):
    """pos f32[B, K, P] -> f32[B, K, width]. All kinds but 'sincos' need the native `grid`; raises InputError.

    'sincos', 'sinusoid': fixed, see the functions. 'learned': a table over the grid. 'separable': a table over the
    first axis, time, plus one over the others (arXiv 2205.09113).
    """

    width: int
    kind: str = 'sincos'
    grid: tuple[int, ...] | None = None

    def _table(self, name, sizes):
        return self.param(name, nn.initializers.normal(0.02), (*sizes, self.width))

    @nn.compact
    def __call__(self, pos):
        if self.kind == 'sincos':
            return sincos(pos, self.width)
        if self.kind == 'sinusoid':
            return sinusoid(pos, self.width, self.grid)
        if self.kind not in KINDS:
            raise InputError(f'positions {self.kind!r} is not one of {", ".join(KINDS)}')
        check_grid(self.kind, self.grid, pos)
        if self.kind == 'learned':
            return resample(self._table('table', self.grid), pos)
        if len(self.grid) < 2:
            raise InputError(f'separable positions need time and space, two axes or more: got grid={self.grid}')
        time, space = self._table('time', self.grid[:1]), self._table('space', self.grid[1:])
        return resample(time, pos[..., :1]) + resample(space, pos[..., 1:])
