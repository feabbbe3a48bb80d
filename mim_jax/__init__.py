"""mim_jax: masked models of anything, in JAX, TPU first."""

__version__ = '0.1.0'
