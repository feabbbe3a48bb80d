"""From noise to samples: pure kernels `(key, network, ...) -> samples`, each jitted whole."""

from mim_jax.samplers.denoising import ddim, guided, known, ode
from mim_jax.samplers.draw import categorical, guide, sharpen, token
from mim_jax.samplers.masked import ancestral, confidence, first_hitting, remasking
from mim_jax.samplers.random_order import random_order

__all__ = [
    'ancestral', 'categorical', 'confidence', 'ddim', 'first_hitting', 'guide', 'guided', 'known', 'ode', 'random_order', 'remasking',
    'sharpen', 'token',
]  # fmt: skip
