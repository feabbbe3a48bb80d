"""Targets in the space of the input."""

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.tokenizers.tokens import Tokens


def patch_statistics(raw: Array, eps: float = 1e-6) -> tuple[Array, Array]:
    """Mean and standard deviation f32[B, N, 1] of each patch, over its pixels and channels (unbiased variance, as MAE)."""
    raw = raw.astype(jnp.float32)
    mean = raw.mean(-1, keepdims=True)
    var = jnp.square(raw - mean).sum(-1, keepdims=True) / max(raw.shape[-1] - 1, 1)
    return mean, jnp.sqrt(var + eps)


def pixels(batch: dict, tokens: Tokens, teacher=None, *, norm: bool = False) -> Array:
    """The raw patches f32[B, N, R]; with `norm`, each patch less its mean over its deviation (MAE, arXiv 2111.06377)."""
    del batch, teacher
    raw = tokens.raw.astype(jnp.float32)
    if norm:
        mean, std = patch_statistics(raw)
        raw = (raw - mean) / std
    return jax.lax.stop_gradient(raw)
