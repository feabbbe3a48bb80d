"""What objectives over ids share: a Transformer that answers a distribution for every token."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import fold, per_row


class TokenModel(nn.Module):
    """Attributes:
    tokenizer: `(batch) -> Tokens` of ids.
    encoder: `(raw, pos, valid, hidden, condition, train) -> [B, E + N, D]`.
    head: `[B, N, D] -> logits [B, N, V]`; there is no logit of the mask.
    condition: `(rows, level, label) -> f32[B, D]`, or None.
    nll: `(logits, ids, smoothing=0.0) -> f32[B, N]`, the loss of each token.
    label_dropout: share of rows trained without their label, for guidance (arXiv 2207.12598).
    """

    tokenizer: Callable
    encoder: nn.Module
    head: nn.Module
    condition: nn.Module | None
    nll: Callable
    label_dropout: float = 0.1
    exact = False  # whether `nats` is the likelihood, not a bound on it

    @property
    def num_classes(self) -> int:
        """That it is told; 0 = none."""
        return 0 if self.condition is None else self.condition.num_classes

    @property
    def knows_level(self) -> bool:
        """Whether it is told the level."""
        return self.condition is not None and self.condition.level

    def network(self, raw, pos, sees, hidden, level, label, train=False) -> tuple[Array, Array]:
        """logits f32[B, N, V] and the features below them [B, N, D]."""
        condition = None if self.condition is None else self.condition(len(raw), level, label)
        z = self.encoder(raw, pos, sees, hidden, condition, train=train)[:, self.encoder.num_prefix :]
        return self.head(z).astype(jnp.float32), z

    def encode(self, batch: dict, train: bool = False) -> Array:
        """Features of the whole input, nothing hidden: [B, E + N, D]."""
        tokens = self.tokenizer(batch)
        condition = None if self.condition is None else self.condition(len(tokens.raw))
        return self.encoder(tokens.raw, tokens.pos, tokens.sees, None, condition, train=train)

    def label(self, batch: dict, key: Array, train: bool) -> Array:
        """See `label_of`."""
        return label_of(batch, len(self.tokenizer(batch).raw), key, self.label_dropout if train else 0.0)


def label_of(batch: dict, rows: int, key: Array, dropped: float) -> Array:
    """i32[rows], -1 where there is none or, of a share `dropped`, it is kept from the network (arXiv 2207.12598)."""
    label = batch.get('label', jnp.full(rows, -1))
    return jnp.where(per_row(fold(key, 2), jax.random.uniform, label.shape) < dropped, -1, label)


def real(tokens, batch: dict) -> Array:
    """f32[B, N]: 1 for tokens that count, neither padding nor of a row without sample."""
    counts = jnp.ones(tokens.raw.shape[:2]) if tokens.valid is None else tokens.valid.astype(jnp.float32)
    return counts * batch['valid'][:, None] if 'valid' in batch else counts


def monitor(ids: Array, vocab: int, weight: Array, z: Array) -> dict:
    """What the log shows besides the loss: 'baseline', the loss of the distribution of this batch's tokens, and 'features' f32[B, D]."""
    hits = jnp.arange(vocab) == ids[..., None]  # bool[B, N, V]
    count = jnp.einsum('bnv,bn->v', hits.astype(jnp.float32), (weight > 0).astype(jnp.float32))
    logp = jnp.log(jnp.maximum(count, 1e-9) / jnp.maximum(count.sum(), 1e-9))
    baseline = (jnp.where(hits, logp, 0).sum(-1) * -weight).sum()
    return jax.lax.stop_gradient(dict(baseline=baseline, features=z.astype(jnp.float32).mean(1)))
