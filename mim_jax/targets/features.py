"""Features of a teacher as the target."""

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.tokenizers.tokens import Tokens


def features(batch: dict, tokens: Tokens, teacher, *, norm: bool = True, eps: float = 1e-5) -> Array:
    """What the teacher's encoder makes of each token when it sees the whole input: f32[B, N, D] (I-JEPA, arXiv 2301.08243).

    Args:
        batch: of the objective, from which the teacher sees what it likes.
        tokens: of the batch.
        teacher: `(batch) -> [B, E + N, D]`, E class and register tokens first, which are left out.
        norm: features of a token have mean 0 and variance 1.
        eps: added to that variance.
    """
    z = teacher(batch)[:, -tokens.raw.shape[1] :].astype(jnp.float32)
    return jax.nn.standardize(z, epsilon=eps) if norm else z
