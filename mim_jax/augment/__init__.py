"""Augmentation on the device: `image` is the slot that configs name; the others are its parts."""

from mim_jax.augment.compose import image

__all__ = ['image']
