"""Nearest neighbours among frozen features."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mim_jax.evals.features import shared


@partial(jax.jit, static_argnames=('num_classes', 'k', 'chunk'))
def classify(
    query: Array,
    bank: Array,
    labels: Array,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 256,
) -> Array:
    """Class i32[q] of each query f32[q, D]: vote of its k most similar rows of bank f32[n, D], labels i32[n].

    Similarity is the cosine, and a vote weighs exp(similarity / temperature) (arXiv 1805.01978, 2104.14294).
    `chunk` queries are compared at once. With fewer than k rows, all of them vote.
    """

    def normalise(x):
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    bank = normalise(bank)

    def one(query):
        similarity, nearest = jax.lax.top_k(jnp.matmul(bank, normalise(query), precision='highest'), min(k, len(bank)))
        weight = jnp.exp((similarity - 1) / temperature)
        return jnp.argmax(jnp.zeros(num_classes).at[labels[nearest]].add(weight)).astype(jnp.int32)

    return jax.lax.map(one, query, batch_size=chunk)


def knn(
    objective, data, *, k: int = 20, temperature: float = 0.07, pool: str = 'mean', batch_size: int = 256
) -> Callable:
    """`params -> {'eval/knn_top1'}`: share of validation images that their k nearest training images classify right.

    k = 20 is the field's choice on ImageNet; 200 is usual on CIFAR-10.

    Raises:
        InputError: see `Features`.
    """
    features = shared(objective, data, pool=pool, batch_size=batch_size)

    def evaluate(params: dict) -> dict[str, float]:
        train, val = features(params)
        guess = classify(
            val.features, train.features, train.labels, num_classes=data.num_classes, k=k, temperature=temperature
        )
        return {'eval/knn_top1': float(np.mean(np.asarray(guess) == val.labels))}

    return evaluate
