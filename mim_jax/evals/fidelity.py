"""How close samples are to data, in the features of a classifier trained on the data: agreement, Fréchet distance, precision, recall."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from scipy import linalg, spatial

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
    sample, classes = (
        make_sampler(objective, sampler),
        objective.condition.num_classes if objective.condition is not None else 0,
    )
    task = build.classifier(
        objective.tokenizer,
        objective.encoder.clone(parent=None),
        data.num_classes,
        'mean',
        mixup=0.0,
        cutmix=0.0,
        smoothing=0.0,
    )
    schedule = optim.schedule(lr=lr, batch_size=batch_size, total_steps=steps, warmup_steps=steps // 20, scale_lr_by=0)
    learn = partial(learned, task, data, None, tx_of=partial(optim.adamw, b2=0.98), schedule=schedule, depth=task.classifier.encoder.shape[1],
                    total=steps, batch_size=batch_size, seed=seed)  # fmt: skip
    judge = jax.jit(lambda params, batch: task.apply({'params': params}, batch, method='logits'))
    kept = []

    def answers(batches):
        outs = [[np.asarray(x)[: len(b['ids'])] for x in judge(kept[0], put(b, batch_size))] for b in batches]
        return (np.concatenate(x).astype(np.float64) for x in zip(*outs, strict=True))

    def evaluate(params: dict) -> dict:
        if not kept:
            kept.append(learn())
        real = list(data.val(batch_size))
        valid, label = (np.concatenate([b[name] for b in real]) for name in ('valid', 'label'))
        shape, asked, drawn = real[0]['ids'].shape[1:], np.arange(samples) % max(classes, 1), []
        for i in range(0, samples, batch_size):
            batch = dict(
                ids=np.zeros((batch_size, *shape), np.int32),
                label=np.resize(asked[i : i + batch_size], batch_size).astype(np.int32),
            )
            batch = put(batch | dict(hidden=np.ones((batch_size, *shape), bool)), batch_size)
            key = jax.random.fold_in(jax.random.key(seed), i)
            drawn.append(
                np.asarray(sample(params, key, batch['ids'], batch['hidden'], batch['label'] if classes else None))
            )
        drawn = np.concatenate(drawn)[:samples]
        theirs, given = answers(real)
        ours, features = answers(dict(ids=drawn[i : i + batch_size]) for i in range(0, samples, batch_size))
        given, count = given[valid][:samples], int(valid.sum())
        agree = {'eval/class_agreement': float((ours.argmax(1) == asked).mean())} if classes else {}
        precision, recall = manifold(given, features), manifold(features, given)
        return agree | {
            'eval/classifier_top1': float((theirs.argmax(1) == label)[valid].mean()),
            'eval/frechet': frechet(features, given),
            'eval/precision': precision,
            'eval/recall': recall,
            'eval/inception_score': inception_score(ours),
            'reference': f'Features f32[{features.shape[1]}] of a Transformer over tokens, trained {steps} steps on {data.num_train} training records; '
            f'{samples} samples against {len(given)} of {count} validation records.\n',
        }

    return evaluate


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians of features f64[n, D] and f64[m, D] (arXiv 1706.08500)."""
    p, q = (np.cov(x, rowvar=False) for x in (a, b))
    root = linalg.sqrtm(p @ q).real
    return float(max(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(p + q - 2 * root), 0))


def manifold(reference: np.ndarray, x: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of x f64[n, D] that lies within the distance to its k-th neighbour of some reference f64[m, D] (arXiv 1904.06991)."""
    radius = np.sort(spatial.distance.cdist(reference, reference), 1)[:, k]
    return float((spatial.distance.cdist(x, reference) <= radius).any(1).mean())


def inception_score(logits: np.ndarray) -> float:
    """exp of the mean divergence of the answers f64[n, C] from their mean (arXiv 1606.03498)."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(np.exp((p * (np.log(p + 1e-12) - np.log(p.mean(0) + 1e-12))).sum(1).mean()))
