"""How close samples are to data, in the features of a classifier trained on the data: agreement, Fréchet distance, precision, recall."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial

import jax
import numpy as np
from scipy import linalg, spatial, special, stats

from mim_jax import build, optim
from mim_jax.errors import InputError
from mim_jax.evals.data import evenly
from mim_jax.evals.features import everywhere, gather, put, spread
from mim_jax.evals.finetune import learned
from mim_jax.evals.generation import make_sampler
from mim_jax.evals.sampling import image_shape, make_image_sampler
from mim_jax.objectives.token_model import TokenModel

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
    judge: Mapping = {},
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/class_agreement', ...}` of samples of every class in turn, or of none where the model knows no classes.

    Both are judged by one network: a Transformer as a classifier of tokens, trained from scratch for `steps` steps on the training records. class_agreement is the share of samples it gives the class they were asked for, beside its own
    classifier_top1 on the validation records; frechet the Fréchet distance of Gaussians (arXiv 1706.08500), precision and recall
    those of manifolds of 3 neighbours (1904.06991), all to as many validation records, evenly spaced, as there are samples or fewer; inception_score
    exp of the mutual information of sample and answer (1606.03498). None of these is an FID: 'reference' says what they are of.

    Args:
        sampler: see `make_sampler`, of images `make_image_sampler`.
        samples: of the model.
        batch_size: of samples, and of the training of the classifier.
        steps, lr: of its training.
        judge: its encoder as config.encoder would say it, which makes methods comparable; empty = that of the objective.
        seed: of both.

    Raises:
        InputError: data without labels, or 3 or fewer samples or, when it is called, validation records.
    """
    if not data.num_classes:
        raise InputError('evals.fidelity needs labels, to train the classifier it judges samples by')
    if samples <= NEIGHBOURS:
        raise InputError(f'evals.fidelity.samples={samples}: it has to be more than {NEIGHBOURS}')
    field, draw = drawn(objective, data, sampler, samples, batch_size, seed)
    encoder = (
        build.part('models', judge, where='evals.fidelity.judge') if judge else objective.encoder.clone(parent=None)
    )
    answer = classifier(objective, encoder, data, batch_size, steps, lr, seed)

    def evaluate(params: dict) -> dict:
        drawn, asked = draw(params, next(iter(data.val(1))))
        theirs, given, label, valid = answer(data.val(batch_size))
        ours, features = answer({field: drawn[i : i + batch_size]} for i in range(0, samples, batch_size))
        reference = given[valid][evenly(valid.sum(), samples)]
        told = f'Features f32[{features.shape[1]}] of a Transformer over tokens, trained {steps} steps on {data.num_train} training records; '
        told += f'{samples} samples against {len(reference)} of {valid.sum()} validation records, evenly spaced.\n'
        agree = {'eval/class_agreement': float((ours.argmax(1) == asked).mean())} if objective.num_classes else {}
        top1 = float((theirs.argmax(1) == label)[valid].mean())
        return agree | {'eval/classifier_top1': top1, 'reference': told} | compared(ours, features, reference)

    return evaluate


def drawn(objective, data, sampler: Mapping, samples: int, batch_size: int, seed: int) -> tuple[str, Callable]:
    """The array of a batch that is drawn, and `(params, a batch of data) -> f32 or i32[samples, ...], the class each was asked for
    i32[samples]`, `batch_size` at once."""
    if isinstance(objective, TokenModel):
        field, sample = 'ids', make_sampler(objective, sampler)

        def one(params, key, label, like):
            shape = (batch_size, like['ids'].shape[1])
            batch = spread(dict(ids=np.zeros(shape, np.int32), hidden=np.ones(shape, bool)))
            told = None if label is None else spread(dict(label=label))['label']
            return sample(params, key, batch['ids'], batch['hidden'], told)
    else:
        field, sample = objective.field, make_image_sampler(objective, data, sampler)

        def one(params, key, label, like):
            told = None if label is None else spread(dict(label=label))['label'][:batch_size]
            return sample(params, key, (batch_size, *image_shape(objective, data, like)), told)

    def draw(params: dict, like: dict) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, samples, batch_size)
        asked = np.arange(len(starts) * batch_size, dtype=np.int32) % max(objective.num_classes, 1)
        found = []
        for i in starts:
            label = asked[i : i + batch_size] if objective.num_classes else None
            out = one(params, jax.random.fold_in(jax.random.key(seed), i), label, like)
            found.append(everywhere(out)[:batch_size])
        return np.concatenate(found)[:samples], asked[:samples]

    return field, draw


def classifier(objective, encoder, data, batch_size: int, steps: int, lr: float, seed: int) -> Callable:
    """`batches -> logits f64[R, C], features f64[R, D]` of a network that is trained when it is first asked; what is drawn, on all hosts, is
    looked at as it is, records as in evaluation, which give label i32[R] and valid bool[R] too."""
    task = build.classifier(
        objective.tokenizer, encoder, data.num_classes, 'mean', mixup=0.0, cutmix=0.0, smoothing=0.0
    )
    schedule = optim.schedule(lr=lr, batch_size=batch_size, total_steps=steps, warmup_steps=steps // 20, scale_lr_by=0)
    learn = partial(learned, task, data, None, tx_of=partial(optim.adamw, b2=0.98), schedule=schedule, depth=encoder.shape[1],
                    total=steps, batch_size=batch_size, seed=seed)  # fmt: skip
    params = lru_cache(maxsize=1)(learn)

    @partial(jax.jit, static_argnums=2)
    def look(params, batch, drawn):
        view = batch if drawn else data.augment(jax.random.key(0), batch, train=False)
        return task.apply({'params': params}, view, method='logits')

    def one(batch: dict):
        if 'valid' not in batch:
            return [x[: len(next(iter(batch.values())))] for x in everywhere(look(params(), spread(batch), True))]
        on = put(batch, batch_size)
        return gather((*look(params(), on, False), on['label'], on['valid']), batch, batch_size)

    def answer(batches: Iterable[dict]):
        logits, features, *told = (np.concatenate(x) for x in zip(*map(one, batches), strict=True))
        return logits.astype(np.float64), features.astype(np.float64), *told

    return answer


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
    """Squared Fréchet distance of Gaussians, each (mean, covariance) (arXiv 1706.08500); nan if one is not finite."""
    (mean_a, p), (mean_b, q) = a, b
    if not all(np.isfinite(x).all() for x in (*a, *b)):
        return float('nan')
    root = linalg.sqrtm(p @ q).real
    return float(max(np.square(mean_a - mean_b).sum() + np.trace(p + q - 2 * root), 0))


def manifold(reference: np.ndarray, x: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of x f64[n, D] that lies within the distance to its k-th neighbour of some reference f64[m, D] (arXiv 1904.06991).

    Raises:
        InputError: there are no k neighbours.
    """
    if len(reference) <= k:
        raise InputError(
            f'evals.fidelity: precision and recall are those of {k} neighbours, and need more than {k} samples and more than {k} '
            f'validation records; there are {len(reference)}'
        )
    radius = np.sort(spatial.distance.cdist(reference, reference), 1)[:, k]
    return float((spatial.distance.cdist(x, reference) <= radius).any(1).mean())


def inception_score(logits: np.ndarray) -> float:
    """exp of the mean divergence of the answers f64[n, C] from their mean (arXiv 1606.03498)."""
    p = special.softmax(logits, 1)
    return float(np.exp(stats.entropy(p, p.mean(0, keepdims=True), axis=1).mean()))
