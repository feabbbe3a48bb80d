"""Colour changes of one image f32[h, w, C] in [0, 1], as torchvision defines them, for any number of channels."""

import jax
import jax.numpy as jnp

Array = jax.Array


def grey(image: Array) -> Array:
    """Luma (ITU-R 601) for three channels, else their mean. f32[h, w, C] -> f32[h, w, 1]."""
    if image.shape[-1] != 3:
        return image.mean(-1, keepdims=True)
    return (image * jnp.asarray([0.299, 0.587, 0.114])).sum(-1, keepdims=True)


def blend(other: Array | float, image: Array, factor: Array) -> Array:
    """`other` at factor 0, `image` at 1, further away beyond; clipped to [0, 1]."""
    return jnp.clip(other + factor * (image - other), 0.0, 1.0)


def brightness(image: Array, factor: Array) -> Array:
    return blend(0.0, image, factor)


def contrast(image: Array, factor: Array) -> Array:
    return blend(grey(image).mean(), image, factor)


def saturation(image: Array, factor: Array) -> Array:
    """Only three channels have one; others pass unchanged."""
    return blend(grey(image), image, factor) if image.shape[-1] == 3 else image


def jitter(key: Array, image: Array, strengths: tuple[float, float, float]) -> Array:
    """ColorJitter: brightness, contrast, saturation by factors in 1 +- strength, in random order."""
    order_key, factor_key = jax.random.split(key)
    strength = jnp.asarray(strengths, jnp.float32)
    factors = jax.random.uniform(factor_key, (3,), minval=jnp.maximum(1 - strength, 0.0), maxval=1 + strength)

    def change(image, op):
        return jax.lax.switch(op, (brightness, contrast, saturation), image, factors[op]), None

    return jax.lax.scan(change, image, jax.random.permutation(order_key, 3))[0]
