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
    """BatchNorm without affine (MAE, arXiv 2111.06377) by the statistics of all of `x`: each array less its mean over its deviation.

    Of frozen features these are what the running statistics converge to; the result does not depend on the batch size.
    """
    mean, std = x.mean(0, dtype=np.float64), np.sqrt(x.var(0, dtype=np.float64) + 1e-6)
    return [((array - mean) / std).astype(np.float32) for array in (x, *others)]


def logits(head: Head, x: Array) -> Array:
    return jnp.matmul(x, head['w'], precision='highest') + head['b']


def sgd(lr: Array, weight_decay: Array, steps: int) -> optax.GradientTransformation:
    """Momentum 0.9, a tenth of warm-up, cosine; biases are not decayed.

    MAE's LARS is for its batch of 16384: on fewer steps it under-trains (a grid of either was run on small data).
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
    return optax.chain(optax.add_decayed_weights(weight_decay, mask=dict(w=True, b=False)), optax.sgd(lambda step: lr * schedule(step), 0.9))


@partial(jax.jit, static_argnames=('num_classes', 'epochs', 'batch_size'))
def fit(key: Array, x: Array, y: Array, lr: Array, weight_decay: Array, *, num_classes: int, epochs: int, batch_size: int) -> Head:
    """Trains G heads on the same batches of x f32[n, D], y i32[n]; lr and weight_decay f32[G]. Heads come stacked: w f32[G, D, C]."""
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


def probe(train: Split, val: Split, lrs, weight_decays, num_classes: int, epochs: int, batch_size: int, holdout: float, seed: int) -> tuple[float, list[dict]]:
    """Accuracy on `val`, and the grid: one dict(lr, weight_decay, top1, loss) per head, as measured on the held-out part of `train`, best first.

    The best pair (ties by loss) is then trained once more, on all of `train`. `val` chooses nothing.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(train.labels))
    held, rest = np.split(rows, [max(1, round(holdout * len(rows)))])

    def run(x, y, lr, weight_decay):
        batch = min(batch_size, max(1, len(y) // 8))  # small data: at least eight steps an epoch
        lr, weight_decay = jnp.asarray(lr) * batch / 256, jnp.asarray(weight_decay)
        return fit(jax.random.key(seed), x, y, lr, weight_decay, num_classes=num_classes, epochs=epochs, batch_size=batch)

    grid = list(itertools.product(lrs, weight_decays))
    x, x_held = standardise(train.features[rest], train.features[held])
    top1, loss = score(run(x, train.labels[rest], *zip(*grid, strict=True)), x_held, train.labels[held])
    table = [dict(lr=lr, weight_decay=wd, top1=float(t), loss=float(e)) for (lr, wd), t, e in zip(grid, top1, loss, strict=True)]
    table.sort(key=lambda row: (-row['top1'], np.nan_to_num(row['loss'], nan=np.inf)))
    x, x_val = standardise(train.features, val.features)
    best = run(x, train.labels, [table[0]['lr']], [table[0]['weight_decay']])
    return float(score(best, x_val, val.labels)[0][0]), table


def linear_probe(
    objective,
    data,
    *,
    lrs: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3),
    weight_decays: Sequence[float] = (0.0, 1e-3, 1e-2, 1e-1),
    epochs: int = 90,
    probe_batch_size: int = 1024,
    holdout: float = 0.1,
    pool: str = 'mean',
    batch_size: int = 256,
    untrained: bool = True,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/linear_top1', 'eval/linear_top1_untrained', ...}`: accuracy of the best linear classifier on frozen features.

    Args:
        objective: see `Features`.
        data: see `Features`.
        lrs: learning rates per 256 rows of a batch.
        weight_decays: every one is tried with every learning rate, all at once.
        epochs: of each head.
        probe_batch_size: rows of a head's batch; at most an eighth of the data.
        holdout: share of the training rows on which the pair is chosen.
        pool: see `Features`.
        batch_size: see `Features`.
        untrained: the same for a fresh encoder, measured once.
        seed: of held-out rows, order and the fresh encoder.

    Returns:
        The evaluator. Its attribute `grid` holds what the last call measured (see `probe`); the chosen pair is also
        among the metrics, as 'eval/linear_lr' and 'eval/linear_weight_decay'.

    Raises:
        InputError: see `Features`.
    """
    features = shared(objective, data, pool=pool, batch_size=batch_size)
    run = partial(probe, lrs=lrs, weight_decays=weight_decays, num_classes=data.num_classes, epochs=epochs, batch_size=probe_batch_size, holdout=holdout, seed=seed)
    baseline = {}

    def evaluate(params: dict) -> dict[str, float]:
        if untrained and not baseline:
            baseline['eval/linear_top1_untrained'] = run(*features.extract(features.untrained(seed)))[0]
        top1, evaluate.grid = run(*features(params))
        best = evaluate.grid[0]
        return {'eval/linear_top1': top1, 'eval/linear_lr': best['lr'], 'eval/linear_weight_decay': best['weight_decay'], **baseline}

    return evaluate
