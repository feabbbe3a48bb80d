"""How close samples are to data, in the features of a classifier trained on the data: agreement, Fréchet distance, precision, recall."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial

import jax
import numpy as np
from scipy import linalg, spatial, special, stats

from mim_jax import build, optim
from mim_jax.errors import InputError
from mim_jax.evals.features import put
from mim_jax.evals.finetune import learned
from mim_jax.evals.generation import make_sampler

NEIGHBOURS = 3


def fidelity(
    objective,
    data,
    *,
    sampler: Mapping,
    samples: int = 1000,
    batch_size: int = 100,
    steps: int = 1000,
    lr: float = 1e-3,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/class_agreement', ...}` of samples of every class in turn, or of none where the model knows no classes.

    Both are judged by one network: the Transformer of the objective as a classifier of tokens, trained from scratch for `steps` steps
    on the training records. class_agreement is the share of samples it gives the class they were asked for, beside its own
    classifier_top1 on the validation records; frechet the Fréchet distance of Gaussians (arXiv 1706.08500), precision and recall
    those of manifolds of 3 neighbours (1904.06991), all to as many validation records as there are samples or fewer; inception_score
    exp of the mutual information of sample and answer (1606.03498). None of these is an FID: 'reference' says what they are of.

    Args:
        sampler: see `make_sampler`.
        samples: of the model.
        batch_size: of samples, and of the training of the classifier.
        steps, lr: of its training.
        seed: of both.

    Raises:
        InputError: data without labels.
    """
    if not data.num_classes:
        raise InputError('evals.fidelity needs labels, to train the classifier it judges samples by')
    draw, judge = (
        drawn(objective, sampler, samples, batch_size, seed),
        classifier(objective, data, batch_size, steps, lr, seed),
    )

    def evaluate(params: dict) -> dict:
        real = list(data.val(batch_size))
        valid, label = (np.concatenate([batch[name] for batch in real]) for name in ('valid', 'label'))
        ids, asked = draw(params, real[0]['ids'].shape[1])
        theirs, given = judge(real)
        ours, features = judge(dict(ids=ids[i : i + batch_size]) for i in range(0, samples, batch_size))
        reference = given[valid][:samples]
        told = f'Features f32[{features.shape[1]}] of a Transformer over tokens, trained {steps} steps on {data.num_train} training records; '
        told += f'{samples} samples against {len(reference)} of {valid.sum()} validation records.\n'
        agree = {'eval/class_agreement': float((ours.argmax(1) == asked).mean())} if objective.num_classes else {}
        top1 = float((theirs.argmax(1) == label)[valid].mean())
        return agree | {'eval/classifier_top1': top1, 'reference': told} | compared(ours, features, reference)

    return evaluate


def drawn(objective, sampler: Mapping, samples: int, batch_size: int, seed: int) -> Callable:
    """`(params, n) -> ids i32[samples, n], the class each was asked for i32[samples]`, `batch_size` at once."""
    sample = make_sampler(objective, sampler)

    def draw(params: dict, n: int) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, samples, batch_size)
        asked = np.arange(len(starts) * batch_size, dtype=np.int32) % max(objective.num_classes, 1)
        blank = dict(ids=np.zeros((batch_size, n), np.int32), hidden=np.ones((batch_size, n), bool))
        ids = []
        for i in starts:
            batch = put(blank | dict(label=asked[i : i + batch_size]), batch_size)
            key = jax.random.fold_in(jax.random.key(seed), i)
            out = sample(params, key, batch['ids'], batch['hidden'], batch['label'] if objective.num_classes else None)
            ids.append(np.asarray(out)[:batch_size])
        return np.concatenate(ids)[:samples], asked[:samples]

    return draw


def classifier(objective, data, batch_size: int, steps: int, lr: float, seed: int) -> Callable:
    """`(batches) -> logits f64[R, C], features f64[R, D]` of a network that is trained when it is first asked."""
    encoder = objective.encoder.clone(parent=None)
    task = build.classifier(
        objective.tokenizer, encoder, data.num_classes, 'mean', mixup=0.0, cutmix=0.0, smoothing=0.0
    )
    schedule = optim.schedule(lr=lr, batch_size=batch_size, total_steps=steps, warmup_steps=steps // 20, scale_lr_by=0)
    learn = partial(learned, task, data, None, tx_of=partial(optim.adamw, b2=0.98), schedule=schedule, depth=encoder.shape[1],
                    total=steps, batch_size=batch_size, seed=seed)  # fmt: skip
    params = lru_cache(maxsize=1)(learn)
    answer = jax.jit(lambda params, batch: task.apply({'params': params}, batch, method='logits'))

    def judge(batches: Iterable[dict]):
        outs = [[np.asarray(x)[: len(b['ids'])] for x in answer(params(), put(b, batch_size))] for b in batches]
        return (np.concatenate(x).astype(np.float64) for x in zip(*outs, strict=True))

    return judge


def compared(logits: np.ndarray, features: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """What can be said of samples by what a classifier makes of them, beside features of data."""
    return {
        'eval/frechet': frechet(moments(features), moments(reference)),
        'eval/precision': manifold(reference, features),
        'eval/recall': manifold(features, reference),
        'eval/inception_score': inception_score(logits),
    }


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean f64[D], covariance f64[D, D]) of features f64[n, D]."""
    return features.mean(0), np.cov(features, rowvar=False)


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Squared Fréchet distance of Gaussians, each (mean, covariance) (arXiv 1706.08500)."""
    (mean_a, p), (mean_b, q) = a, b
    root = linalg.sqrtm(p @ q).real
    return float(max(np.square(mean_a - mean_b).sum() + np.trace(p + q - 2 * root), 0))


def manifold(reference: np.ndarray, x: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of x f64[n, D] that lies within the distance to its k-th neighbour of some reference f64[m, D] (arXiv 1904.06991)."""
    radius = np.sort(spatial.distance.cdist(reference, reference), 1)[:, k]
    return float((spatial.distance.cdist(x, reference) <= radius).any(1).mean())


def inception_score(logits: np.ndarray) -> float:
    """exp of the mean divergence of the answers f64[n, C] from their mean (arXiv 1606.03498)."""
    p = special.softmax(logits, 1)
    return float(np.exp(stats.entropy(p, p.mean(0, keepdims=True), axis=1).mean()))
