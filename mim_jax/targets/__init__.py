"""What the prediction is compared with: `(batch, tokens, teacher, **options) -> f32[B, N, R]`."""

from mim_jax.targets.pixels import patch_statistics, pixels

__all__ = ['patch_statistics', 'pixels']
