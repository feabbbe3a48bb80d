"""What answers on top of an encoder: a classifier, and the network that denoises one token."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mim_jax.models.blocks import Dense, LayerNorm, Modulation, modulate, xavier
from mim_jax.models.condition import Condition

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


class DiffusionHead(nn.Module):
    """head(x f32[M, R], t f32[M], told [M, width]) -> f32[M, R]: residual MLP blocks with adaptive norm (MAR, arXiv 2406.11838)."""

    width: int = 1024
    depth: int = 6
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: Array, t: Array, told: Array) -> Array:
        def modulation(count, name):
            return Modulation(count, self.dtype, name=name)(condition)[:, :, 0]  # [count, M, width]

        dense = partial(Dense, dtype=self.dtype, kernel_init=xavier)
        condition = told.astype(self.dtype) + Condition(self.width, level=True, name='time')(len(t), t).astype(
            self.dtype
        )
        y = dense(self.width, name='embed')(x)
        for i in range(self.depth):
            shift, scale, gate = modulation(3, f'modulation_{i}')
            branch = modulate(LayerNorm(name=f'norm_{i}')(y), shift, scale)
            branch = dense(self.width, name=f'fc1_{i}')(branch)
            y = y + gate * dense(self.width, name=f'fc2_{i}')(nn.silu(branch))
        y = modulate(LayerNorm(name='norm')(y), *modulation(2, 'modulation'))
        return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name='out')(y).astype(
            jnp.float32
        )
