"""Ridge regression on a few labelled images per class."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mim_jax.evals.features import shared


@jax.jit
def ridge(x: Array, y: Array, l2: float) -> tuple[Array, Array]:
    """Closed-form argmin of |x w + b - y|^2 + l2 |w|^2, b free: x f32[n, D], y f32[n, C] -> w f32[D, C], b f32[C].

    Solves the smaller of the D x D and n x n systems.
    """
    with jax.default_matmul_precision('highest'):
        mean, b = x.mean(0), y.mean(0)
        x, y = x - mean, y - b
        n, d = x.shape
        if n >= d:
            w = jax.scipy.linalg.solve(x.T @ x + l2 * jnp.eye(d), x.T @ y, assume_a='pos')
        else:
            w = x.T @ jax.scipy.linalg.solve(x @ x.T + l2 * jnp.eye(n), y, assume_a='pos')
        return w, b - mean @ w


def draw(rng: np.random.Generator, labels: np.ndarray, shots: int) -> np.ndarray:
    """Indices of `shots` random rows of every class; a class with fewer gives all it has."""
    order = rng.permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])


def few_shot(
    objective,
    data,
    *,
    shots: Sequence[int] = (1, 5, 10, 25),
    trials: int = 3,
    l2: float = 2.0**10,
    pool: str = 'mean',
    batch_size: int = 256,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/fewshot_{k}_top1'}`: linear classifiers of k images per class, mean over `trials` draws.

    As big_vision's `fewshot_lsr`: features standardised by the shots, targets of -1 and 1, one fixed `l2`. Here the
    bias goes without penalty.

    Raises:
        InputError: see `Features`.
    """
    features = shared(objective, data, pool=pool, batch_size=batch_size)

    def accuracy(train, val, index: np.ndarray) -> float:
        x, y = train.features[index], 2.0 * np.eye(data.num_classes, dtype=np.float32)[train.labels[index]] - 1
        mean, std = x.mean(0), x.std(0) + 1e-5
        w, b = ridge((x - mean) / std, y, l2)
        guess = np.argmax((val.features - mean) / std @ np.asarray(w) + np.asarray(b), -1)
        return np.mean(guess == val.labels)

    def evaluate(params: dict) -> dict[str, float]:
        train, val = features(params)
        top1 = {}
        for k in shots:
            rng = np.random.default_rng((seed, k))
            draws = [draw(rng, train.labels, k) for _ in range(trials)]
            top1[f'eval/fewshot_{k}_top1'] = float(np.mean([accuracy(train, val, index) for index in draws]))
        return top1

    return evaluate
