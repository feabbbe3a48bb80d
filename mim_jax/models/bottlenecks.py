"""From vectors to codes and back: `(z [B, h, w, width], weight, key) -> (vectors f32[B, h, w, d], codes, loss)`.

`lookup(codes)` gives the vectors of codes, which are one of `size` ids, i32[B, h, w], with d = `width`; or, where `size` is 0,
latents f32[B, h, w, d]. Gradients pass from quantised vectors straight through to z; all is computed in f32. `key`, one or one for
each row, is given in training to what draws.
"""

import math
from itertools import accumulate
from operator import mul

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.errors import InputError
from mim_jax.masks.mask import per_row

MARGIN = 1e-3  # keeps tanh off the last boundary
LOG_VARIANCE = (-30.0, 20.0)  # as latent diffusion clips it


class FSQ(nn.Module):
    """Finite scalar quantisation (arXiv 2309.15505): each of a few numbers is bounded and rounded. No parameters, no loss.

    Attributes:
        levels: values that each number may take, as (8, 5, 5, 5) for 1000 codes. Raises InputError if one is below 2.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return len(self.levels)

    @property
    def size(self) -> int:
        """Codes there are."""
        return math.prod(self.levels)

    def bound(self, z: Array) -> Array:
        """Into the open interval whose whole numbers are the levels; an even number of them has one more below 0 than above."""
        if min(self.levels) < 2:
            raise InputError(f'FSQ levels {tuple(self.levels)}: each has to be at least 2')
        levels = jnp.array(self.levels)
        half, offset = (levels - 1) * (1 - MARGIN) / 2, jnp.where(levels % 2, 0.0, 0.5)
        return jnp.tanh(z.astype(jnp.float32) + jnp.tan(offset / half)) * half - offset

    def __call__(self, z: Array, weight: Array | None = None, key: Array | None = None) -> tuple[Array, Array, Array]:
        """See the module; quantised numbers are in [-1, 1]."""
        bounded = self.bound(z)
        whole = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
        quantised = whole / self._half()
        return quantised, self.ids(quantised), jnp.zeros((), jnp.float32)

    def ids(self, quantised: Array) -> Array:
        """i32[...] of f32[..., width]: the digits of a number in mixed radix, the first the lowest."""
        digits = jnp.round(quantised * self._half()).astype(jnp.int32) + self._half()
        return (digits * self._places()).sum(-1)

    def lookup(self, ids: Array) -> Array:
        """f32[..., width] of i32[...]: the inverse of `ids`."""
        digits = ids[..., None] // self._places() % jnp.array(self.levels)
        return (digits - self._half()) / self._half()

    def _half(self) -> Array:
        return jnp.array(self.levels) // 2

    def _places(self) -> Array:
        return jnp.array(list(accumulate(self.levels[:-1], mul, initial=1)))


class VQ(nn.Module):
    """Vector quantisation (arXiv 1711.00937): the nearest of `size` learned vectors, which gradients draw to what is near them.

    With few numbers to a vector, and these and z on the unit sphere (ViT-VQGAN, arXiv 2110.04627), codes stay in use without
    restarts or moving averages, that is, without any state that a gradient does not change.

    Attributes:
        size: codes.
        width: numbers of a vector.
        normalise: to the unit sphere.
        commitment: weight of what draws z to its code, beside what draws the code to z.
    """

    size: int = 1024
    width: int = 8
    normalise: bool = True
    commitment: float = 0.25

    def setup(self):
        self.codebook = self.param('codebook', nn.initializers.normal(1.0), (self.size, self.width))

    def place(self, x: Array) -> Array:
        """f32, on the sphere where vectors are compared there."""
        x = x.astype(jnp.float32)
        if not self.normalise:
            return x
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))

    def nearest(self, z: Array, codes: Array) -> Array:
        """i32[...] of f32[..., width]: by |z - e|^2 = |z|^2 - 2 z e + |e|^2, the first of which does not matter."""
        product = jnp.einsum('...d,kd->...k', z, codes, precision='highest')
        return (product - 0.5 * jnp.square(codes).sum(-1)).argmax(-1).astype(jnp.int32)

    def __call__(self, z: Array, weight: Array | None = None, key: Array | None = None) -> tuple[Array, Array, Array]:
        """See the module; the loss is the mean over rows under weight f32[B]."""
        z, codes = self.place(z), self.place(self.codebook)
        ids = jax.lax.stop_gradient(self.nearest(z, codes))
        near, stop = jnp.take(codes, ids, axis=0), jax.lax.stop_gradient
        pull = jnp.square(stop(z) - near) + self.commitment * jnp.square(z - stop(near))
        return z + stop(near - z), ids, mean_row(pull.mean(tuple(range(1, z.ndim))), weight)

    def lookup(self, ids: Array) -> Array:
        """f32[..., width] of i32[...]."""
        return jnp.take(self.place(self.codebook), ids, axis=0)


class KL(nn.Module):
    """The Gaussian of a variational autoencoder, held weakly to the unit Gaussian (latent diffusion, arXiv 2112.10752). No parameters.

    z is mean and log-variance of each latent. With a key the decoder gets a draw of them, without one the mean; what is stored is the mean.

    Attributes:
        channels: numbers of a latent.
        weight: of the KL divergence, the sum over all latents of an image, beside a reconstruction that is a mean over pixels (the
            paper's is a sum, so that its 1e-6 weighs less).
    """

    channels: int = 4
    weight: float = 1e-6
    size = 0

    @property
    def width(self) -> int:
        """Numbers that say a latent."""
        return 2 * self.channels

    def __call__(self, z: Array, weight: Array | None = None, key: Array | None = None) -> tuple[Array, Array, Array]:
        """See the module; the loss is the mean over rows under weight f32[B]."""
        mean, log_variance = jnp.split(z.astype(jnp.float32), 2, -1)
        log_variance = jnp.clip(log_variance, *LOG_VARIANCE)
        apart = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
        loss = self.weight * mean_row(apart.sum(tuple(range(1, z.ndim))), weight)
        if key is None:
            return mean, mean, loss
        return mean + jnp.exp(log_variance / 2) * per_row(key, jax.random.normal, mean.shape), mean, loss

    def lookup(self, latents: Array) -> Array:
        """Latents are their own vectors."""
        return latents.astype(jnp.float32)


def mean_row(rows: Array, weight: Array | None) -> Array:
    """The mean of f32[B] under weight f32[B]; without one they count alike."""
    return rows.mean() if weight is None else rows @ weight / jnp.maximum(weight.sum(), 1e-6)
