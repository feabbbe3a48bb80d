"""What the prediction is compared with: `(batch, tokens, teacher, **options) -> f32[B, N, R]`."""

from mim_jax.targets.features import features
from mim_jax.targets.pixels import normalised, patch_statistics, pixels

__all__ = ['features', 'normalised', 'patch_statistics', 'pixels']
