"""A cross-attention pooler and a linear layer, trained on frozen tokens."""

from collections.abc import Callable, Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mim_jax.errors import InputError
from mim_jax.evals.features import NO_LABEL, Features, Split
from mim_jax.models.blocks import Attention, LayerNorm, Mlp

normal = nn.initializers.truncated_normal(0.02)


class AttentiveClassifier(nn.Module):
    """V-JEPA's attentive probe of depth 1 (arXiv 2404.08471): tokens f32[B, N, D] -> logits f32[B, num_classes].

    A learned query reads the normalised tokens by cross-attention; a residual MLP follows, then one linear layer.
    `heads` defaults to one per 64 channels.
    """

    num_classes: int
    heads: int | None = None

    @nn.compact
    def __call__(self, tokens):
        width = tokens.shape[-1]
        query = self.param('query', normal, (1, 1, width))
        x = jnp.broadcast_to(query, (len(tokens), 1, width))
        x = x + Attention(self.heads or max(1, width // 64), name='attention')(x, LayerNorm(name='norm1')(tokens))
        x = x + Mlp(name='mlp')(LayerNorm(name='norm2')(x))
        return nn.Dense(self.num_classes, kernel_init=normal, name='head')(x[:, 0])


@partial(jax.jit, static_argnames=('head', 'tx'), donate_argnames=('state',))
def train_step(
    state, tokens: Array, labels: Array, counts: Array, *, head: nn.Module, tx: optax.GradientTransformation
):
    """One step of (params, optimiser state) on tokens f32[B, N, D], labels i32[B], of the rows where counts bool[B]."""
    params, opt_state = state

    def loss(params):
        error = optax.softmax_cross_entropy_with_integer_labels(head.apply({'params': params}, tokens), labels)
        return (error * counts).sum() / jnp.maximum(counts.sum(), 1)

    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


@partial(jax.jit, static_argnames='head')
def hits(params, tokens: Array, labels: Array, counts: Array, *, head: nn.Module) -> tuple[Array, Array]:
    """Rows classified right, and rows that count."""
    right = head.apply({'params': params}, tokens).argmax(-1) == labels
    return (right & counts).sum(), counts.sum()


def slices(split: Split, index: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of cached tokens in the order of `index`; the last is filled up with rows that do not count."""
    for start in range(0, len(index), batch_size):
        rows = index[start : start + batch_size]
        filled = np.pad(rows, (0, batch_size - len(rows)))
        yield split.features[filled], split.labels[filled], np.arange(batch_size) < len(rows)


def attentive_probe(
    objective,
    data,
    *,
    epochs: int = 20,
    lr: float = 1e-3,
    weight_decay: float = 1e-3,
    heads: int | None = None,
    batch_size: int = 256,
    cache_gb: float = 4.0,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/attentive_top1'}`: accuracy of an attentive probe on frozen tokens (V-JEPA, arXiv 2404.08471).

    AdamW, cosine to 0 without warm-up, as V-JEPA does on images (weight decay 1e-2 for video).

    Args:
        objective, data: see `Features`.
        epochs: passes over the training images.
        lr: at the start.
        weight_decay: decoupled, on every parameter.
        heads: of the cross-attention; default one per 64 channels.
        batch_size: images of a step.
        cache_gb: up to this size the training tokens are kept in host memory; beyond it, every pass encodes again.
        seed: of the classifier's start and of the order.

    Raises:
        InputError: see `Features`; `heads` does not divide the width.
    """
    features = Features(objective, data, pool='tokens', batch_size=batch_size)
    steps = -(-data.num_train // batch_size)
    head = AttentiveClassifier(data.num_classes, heads)
    tx = optax.adamw(optax.cosine_decay_schedule(lr, epochs * steps), weight_decay=weight_decay)

    def evaluate(params: dict) -> dict[str, float]:
        tokens = next(features.stream(params, data.val(batch_size)))[0]  # f32[B, N, D]
        cached = tokens[0].nbytes * data.num_train <= cache_gb * 2**30
        train, val = features.extract(params) if cached else (None, None)

        def epoch_of(number: int) -> Iterator[tuple[Array, Array, Array]]:
            if not cached:
                return features.stream(params, data.train(batch_size, seed=seed + number, steps=steps))
            return slices(train, np.random.default_rng((seed, number)).permutation(len(train.labels)), batch_size)

        start = jax.jit(head.init)(jax.random.key(seed), tokens[:1])['params']
        state = start, tx.init(start)
        for number in range(epochs):
            for batch in epoch_of(number):
                state = train_step(state, *batch, head=head, tx=tx)
        test = (
            slices(val, np.arange(len(val.labels)), batch_size)
            if cached
            else features.stream(params, data.val(batch_size))
        )
        right, total = np.sum([hits(state[0], *batch, head=head) for batch in test], axis=0)
        if not total:
            raise InputError(NO_LABEL.format(split='validation'))
        return {'eval/attentive_top1': float(right / total)}

    return evaluate
