"""How far the prediction is from the goal: `(prediction, goal, weight, **options) -> scalar`, elementwise inside."""

from mim_jax.losses.likelihood import nll
from mim_jax.losses.regression import l1, mse, smooth_l1

__all__ = ['l1', 'mse', 'nll', 'smooth_l1']
