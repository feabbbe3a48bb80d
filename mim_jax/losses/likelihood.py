"""Losses of predictions that are distributions."""

import jax
import jax.numpy as jnp
from jax import Array


def nll(logits: Array, ids: Array, smoothing: float = 0.0) -> Array:
    """f32[...]: negative log-likelihood in nats of ids i32[...] under softmax(logits [..., V]), in f32.

    With `smoothing`, cross-entropy with targets that give this share to all tokens alike (arXiv 1512.00567).
    """
    logits = logits.astype(jnp.float32)
    hit = jnp.arange(logits.shape[-1]) == ids[..., None]  # a gather would be slower, and its gradient a scatter
    total = jax.nn.logsumexp(logits, -1)
    return total - (1 - smoothing) * jnp.where(hit, logits, 0).sum(-1) - smoothing * logits.mean(-1)
