"""Supervised training of an encoder with a linear head: fine-tuning, post-pretraining, or from scratch."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class Classification(nn.Module):
    """Cross-entropy of a classifier, `(batch, key, train) -> (loss, aux)`. Rows without label or pixels do not count.

    Attributes:
        tokenizer: `(batch) -> Tokens`.
        classifier: `(raw, pos, valid, train) -> logits f32[B, C], features f32[B, D]`, with `num_classes` and `encoder`.
        mix: `(key, x, label) -> (x, soft labels f32[B, C])`, in training only.
        field: the array of the batch that is mixed.
    """

    tokenizer: Callable
    classifier: nn.Module
    mix: Callable
    field: str = 'image'

    def logits(self, batch: dict, train: bool = False) -> tuple[Array, Array]:
        """f32[B, C], and what the head sees, f32[B, D]."""
        tokens = self.tokenizer(batch)
        return self.classifier(tokens.raw, tokens.pos, tokens.valid, train=train)

    def __call__(self, batch: dict, key: Array, train: bool = True) -> tuple[Array, dict]:
        """aux: 'features' f32[B, D], 'top1' share of hits, 'rows' that count, 'baseline' the loss of the mean target."""
        label, counts = batch['label'], batch['valid'] & (batch['label'] >= 0)
        target = jax.nn.one_hot(label, self.classifier.num_classes)
        if train:
            x, target = self.mix(key[0], batch[self.field], label)  # one draw for the whole batch, as timm
            batch = batch | {self.field: x}
        logits, features = self.logits(batch, train)
        share = counts / jnp.maximum(counts.sum(), 1)
        loss = -(target * jax.nn.log_softmax(logits)).sum(-1) @ share
        mean = share @ target
        baseline = -(mean * jnp.log(jnp.maximum(mean, 1e-9))).sum()
        top1 = (logits.argmax(-1) == label) @ share
        aux = dict(features=features, baseline=baseline, top1=top1, rows=counts.sum())
        return loss, jax.lax.stop_gradient(aux)
