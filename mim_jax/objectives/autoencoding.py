"""Autoencoding through codes or latents: image to codes to image, the first stage of generation by masks, by order or by noise."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


def psnr(a: Array, b: Array) -> Array:
    """Peak signal-to-noise ratio in dB, f32[B], of two arrays f32[B, ...] in [0, 1]; 100 where they are the same."""
    error = jnp.square(a - b).mean(tuple(range(1, a.ndim)))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def usage(ids: Array, weight: Array, size: int) -> Array:
    """How often each of `size` codes is used, f32[size], by codes i32[B, ...] of rows under weight f32[B]."""
    rows = jnp.broadcast_to(weight.reshape(-1, *[1] * (ids.ndim - 1)), ids.shape).reshape(-1, 1)
    return jnp.where(ids.reshape(-1, 1) == jnp.arange(size), rows, 0.0).sum(0)  # no scatter, which TPUs do one by one


def perplexity(counts: Array) -> Array:
    """exp of the entropy of counts f32[K]: as many codes as are in use, were they used alike."""
    share = counts / jnp.maximum(counts.sum(), 1)
    return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-12))).sum())


class Autoencoding(nn.Module):
    """VQ-VAE (arXiv 1711.00937), FSQ (2309.15505) and KL (2112.10752) by the reconstruction alone: no discriminator, no perceptual loss.

    Attributes:
        tokenizer: `(batch) -> Tokens`: which pixels a code stands for.
        encoder: `image f32[B, H, W, C] -> [B, h, w, D]`.
        bottleneck: `(z [B, h, w, width], weight f32[B], key) -> (vectors f32[B, h, w, d], codes, loss)`, with `size`, `width` and
            `lookup`; see models/bottlenecks.py.
        decoder: `[B, h, w, d] -> f32[B, H, W, C]`.
        losses: (`(prediction, goal, weight) -> scalar`, its weight in the sum) of each.
        mean, std: how pixels in [0, 1] were normalised.
        field: the array of the batch.
    """

    tokenizer: Callable
    encoder: nn.Module
    bottleneck: nn.Module
    decoder: nn.Module
    losses: Sequence[tuple[Callable, float]]
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    field: str = 'image'

    def setup(self):
        self.to_code = nn.Dense(self.bottleneck.width)

    def encode(self, batch: dict, train: bool = False) -> Array:
        """What the encoder says of each place before it is narrowed to a code: [B, h * w, D]."""
        z = self.encoder(batch[self.field], train=train)
        return z.reshape(len(z), -1, z.shape[-1])

    def codes(self, batch: dict) -> Array:
        """Of normalised images: ids i32[B, h, w], or latents f32[B, h, w, d]."""
        return self.bottleneck(self.to_code(self.encoder(batch[self.field])))[1]

    def decode(self, codes: Array) -> Array:
        """Pixels in [0, 1], f32[B, H, W, C], of what `codes` gives."""
        return self.pixels(self.decoder(self.bottleneck.lookup(codes)))

    def pixels(self, image: Array) -> Array:
        """[0, 1] of normalised values."""
        return jnp.clip(image * jnp.asarray(self.std) + jnp.asarray(self.mean), 0, 1)

    def loss(self, prediction: Array, image: Array, weight: Array) -> Array:
        """The weighted sum of the losses; weight is f32[B]."""
        prediction, goal = (x.reshape(len(x), -1, x.shape[-1]) for x in (prediction, image))
        weight = jnp.broadcast_to(weight[:, None], goal.shape[:2])
        return sum(share * f(prediction, goal, weight) for f, share in self.losses)

    def __call__(self, batch: dict, key: Array, train: bool = True) -> tuple[Array, dict]:
        """aux: 'baseline' the loss of the mean image, 'features' f32[B, D], 'psnr' in dB; of ids 'codes', their perplexity in this batch, of latents
        'bottleneck', the loss of that."""
        image = batch[self.field]
        weight = batch['valid'].astype(jnp.float32) if 'valid' in batch else jnp.ones(len(image))
        z = self.encoder(image, train=train)
        vectors, codes, own = self.bottleneck(self.to_code(z), weight, key if train else None)
        prediction = self.decoder(vectors, train=train)
        loss = self.loss(prediction, image, weight) + own
        share, size = weight / jnp.maximum(weight.sum(), 1e-6), self.bottleneck.size
        mean = jnp.einsum('b...,b->...', image, share, precision='highest')
        aux = dict(
            baseline=self.loss(jnp.broadcast_to(mean, image.shape), image, weight),
            features=z.astype(jnp.float32).mean((1, 2)),
            psnr=psnr(self.pixels(prediction), self.pixels(image)) @ share,
            **(dict(codes=perplexity(usage(codes, weight, size))) if size else dict(bottleneck=own)),
        )
        return loss, jax.lax.stop_gradient(aux)
