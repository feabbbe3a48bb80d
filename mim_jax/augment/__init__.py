"""Augmentation on the device: `image` and `video` are what configs name; the others are their parts."""

from mim_jax.augment.compose import image, video

__all__ = ['image', 'video']
