"""Linear classifiers on frozen features: every learning rate and weight decay of a grid trained in one scan."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mim_jax.evals.features import Split, shared

Head = dict[str, Array]  # w f32[D, C], b f32[C]


def standardise(x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """BatchNorm without affine (MAE, arXiv 2111.06377): each array less the mean of `x` over its deviation.

    Statistics are of the whole data set: on frozen features the running ones converge to them, and the result does
    not depend on the batch size.
    """
    mean, std = x.mean(0, dtype=np.float64), np.sqrt(x.var(0, dtype=np.float64) + 1e-6)
    return [((array - mean) / std).astype(np.float32) for array in (x, *others)]


def logits(head: Head, x: Array) -> Array:
    return jnp.matmul(x, head['w'], precision='highest') + head['b']


def sgd(lr: Array, weight_decay: Array, steps: int) -> optax.GradientTransformation:
    """Momentum 0.9, a tenth of warm-up, cosine; biases are not decayed.

    Not MAE's LARS, which is for its batch of 16384: on small data, a few hundred steps, it stops far from the optimum.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=dict(w=True, b=False)),
        optax.sgd(lambda step: lr * schedule(step), 0.9),
    )


@partial(jax.jit, static_argnames=('num_classes', 'epochs', 'batch_size'))
def fit(
    key: Array, x: Array, y: Array, lr: Array, weight_decay: Array, *, num_classes: int, epochs: int, batch_size: int
) -> Head:
    """Trains G heads on the same batches of x f32[n, D], y i32[n]; lr and weight_decay f32[G].

    Returns the stacked heads, w f32[G, D, C] and b f32[G, C].
    """
    n, d = x.shape
    steps = n // batch_size
    tx = partial(sgd, steps=epochs * steps)

    def loss(head, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(head, x), y).mean()

    def update(head, state, lr, weight_decay, rows):
        updates, state = tx(lr, weight_decay).update(jax.grad(loss)(head, x[rows], y[rows]), state, head)
        return optax.apply_updates(head, updates), state

    def step(carry, rows):
        return jax.vmap(update, (0, 0, 0, 0, None))(*carry, lr, weight_decay, rows), None

    def epoch(carry, key):
        order = jax.random.permutation(key, n)[: steps * batch_size].reshape(steps, batch_size)
        return jax.lax.scan(step, carry, order)[0], None

    # The problem is convex: zeros are as good a start as any, and the same for all seeds.
    heads = dict(w=jnp.zeros((len(lr), d, num_classes)), b=jnp.zeros((len(lr), num_classes)))
    start = heads, jax.vmap(lambda lr, weight_decay, head: tx(lr, weight_decay).init(head))(lr, weight_decay, heads)
    return jax.lax.scan(epoch, start, jax.random.split(key, epochs))[0][0]


@jax.jit
def score(heads: Head, x: Array, y: Array) -> tuple[Array, Array]:
    """Accuracy and cross-entropy f32[G] of G stacked heads."""

    def one(head):
        out = logits(head, x)
        return jnp.mean(out.argmax(-1) == y), optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    return jax.lax.map(one, heads)


def train(
    x: np.ndarray, y: np.ndarray, grid: Sequence[tuple[float, float]], *, seed: int, batch_size: int, **how
) -> Head:
    """The stacked heads of a grid of (learning rate per 256 rows, weight decay); small data gets eight steps an epoch."""
    batch = min(batch_size, max(1, len(y) // 8))
    lr, weight_decay = np.asarray(grid, np.float32).T
    return fit(jax.random.key(seed), x, y, lr * batch / 256, weight_decay, batch_size=batch, **how)


def probe(
    train_split: Split, val: Split, *, grid: Sequence, holdout: float, seed: int, **how
) -> tuple[float, list[dict]]:
    """Accuracy on `val`, and what the grid is worth: dict(lr, weight_decay, top1, loss) of each pair, best first.

    Pairs are compared (ties by loss) on a random part of the training rows that their heads have not seen. The best is
    trained once more, on all of them: `val` chooses nothing.
    """
    rows = np.random.default_rng(seed).permutation(len(train_split.labels))
    held, rest = np.split(rows, [max(1, round(holdout * len(rows)))])
    features, labels = train_split
    x, x_held = standardise(features[rest], features[held])
    top1, loss = score(train(x, labels[rest], grid, seed=seed, **how), x_held, labels[held])
    measured = zip(grid, top1.tolist(), loss.tolist(), strict=True)
    table = [dict(lr=lr, weight_decay=decay, top1=right, loss=error) for (lr, decay), right, error in measured]
    table.sort(key=lambda row: (-row['top1'], np.nan_to_num(row['loss'], nan=np.inf)))
    x, x_val = standardise(features, val.features)
    best = train(x, labels, [(table[0]['lr'], table[0]['weight_decay'])], seed=seed, **how)
    return float(score(best, x_val, val.labels)[0][0]), table


def linear_probe(
    objective,
    data,
    *,
    lrs: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    weight_decays: Sequence[float] = (0.0, 1e-3, 1e-2, 1e-1),
    epochs: int = 90,
    probe_batch_size: int = 1024,
    holdout: float = 0.1,
    untrained: bool = True,
    pool: str = 'mean',
    batch_size: int = 256,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/linear_top1', 'eval/linear_top1_untrained', ...}`: a linear classifier on frozen features.

    Args:
        objective, data, pool, batch_size: see `Features`.
        lrs: learning rates per 256 rows of a batch.
        weight_decays: every one is tried with every learning rate, all at once.
        epochs: of each head.
        probe_batch_size: rows of a head's batch.
        holdout: share of the training rows on which the pair is chosen.
        untrained: the same for a fresh encoder, measured once.
        seed: of held-out rows, order and the fresh encoder.

    Returns:
        The evaluator. The chosen pair is among the metrics, as 'eval/linear_lr' and 'eval/linear_weight_decay'; its
        attribute `grid` holds all that the last call measured, see `probe`.
    """
    features = shared(objective, data, pool=pool, batch_size=batch_size)
    grid = list(itertools.product(lrs, weight_decays))
    how = dict(num_classes=data.num_classes, epochs=epochs, batch_size=probe_batch_size)
    run = partial(probe, grid=grid, holdout=holdout, seed=seed, **how)
    baseline = {}

    def evaluate(params: dict) -> dict[str, float]:
        if untrained and not baseline:
            baseline['eval/linear_top1_untrained'] = run(*features.extract(features.untrained(seed)))[0]
        top1, evaluate.grid = run(*features(params))
        chosen = {f'eval/linear_{name}': evaluate.grid[0][name] for name in ('lr', 'weight_decay')}
        return {'eval/linear_top1': top1} | baseline | chosen

    return evaluate
