"""Augmentation on the device: `image`, `video` and `tokens` are what configs name; the others are their parts."""

from mim_jax.augment.compose import image, latents, tokens, video

__all__ = ['image', 'latents', 'tokens', 'video']
