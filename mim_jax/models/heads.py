"""Classification on top of an encoder."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mim_jax.models.blocks import LayerNorm

POOLS = ('mean', 'cls')


def skip_norm(call, args, kwargs, context):
    """Interceptor that makes the encoder's last norm the identity: MAE pools before it norms."""
    return args[0] if context.module.path[-2:] == ('encoder', 'norm') else call(*args, **kwargs)


class Classifier(nn.Module):
    """A linear head on the class token, or on the norm of the mean patch token (`global_pool` of arXiv 2111.06377).

    classifier(raw f32[B, N, R], pos f32[B, N, P], valid bool[B, N] | None) -> logits f32[B, num_classes] and what the
    head sees, f32[B, D]. With pool='mean' the encoder's own last norm is left out, and padding tokens do not count.
    """

    encoder: nn.Module
    num_classes: int
    pool: str = 'mean'

    @nn.compact
    def __call__(self, raw: Array, pos: Array, valid: Array | None = None, *, train: bool = False):
        if self.pool == 'cls':
            x = self.encoder(raw, pos, valid, train=train)[:, 0].astype(jnp.float32)
        else:
            with nn.intercept_methods(skip_norm):
                z = self.encoder(raw, pos, valid, train=train)[:, self.encoder.num_prefix :]
            weight = jnp.ones(z.shape[:2]) if valid is None else valid.astype(jnp.float32)
            x = jnp.einsum('bnd,bn->bd', z.astype(jnp.float32), weight / jnp.maximum(weight.sum(1, keepdims=True), 1))
            x = LayerNorm(name='norm')(x)
        small = nn.initializers.truncated_normal(2e-5)  # as MAE: the head starts silent
        return nn.Dense(self.num_classes, kernel_init=small, name='head')(x), x
