"""Real handwritten digits and a small fresh ViT, as every evaluator gets them."""

from functools import partial

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from mim_jax import augment, hiding, losses, masks, objectives, targets, tokenizers
from mim_jax.evals.data import LabelledData
from mim_jax.models import SelfAttention, ViT

NUM_TRAIN = 1000


def passes(rows, batch_size, order):
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        yield {name: value[index] for name, value in rows.items()}


def labelled(image, label, num_train, mean=(0.3,), std=(0.4,), valid=None):
    """LabelledData of canvases uint8[n, h, w, C] and labels i32[n]: the first `num_train` are for training."""
    count = len(label)
    size = np.tile(np.array(image.shape[1:3], np.int32), (count, 1))
    valid = np.ones(count, bool) if valid is None else valid
    rows = dict(image=image, size=size, label=label.astype(np.int32), valid=valid)

    def train(batch_size, seed, shuffle=True, steps=None, reader=()):
        order = np.random.default_rng(seed).permutation(num_train) if shuffle else np.arange(num_train)
        return passes(rows, batch_size, order if steps is None else order[: steps * batch_size])

    return LabelledData(
        train=train,
        val=lambda batch_size, reader=(): passes(rows, batch_size, np.arange(num_train, count)),
        num_train=num_train,
        num_classes=int(label.max()) + 1,
        mean=mean,
        std=std,
        image_size=image.shape[1:3],
        augment=partial(augment.image, image_size=image.shape[1:3], mean=mean, std=std, crop='pad', flip=False),
    )


def small_objective(patch=(2, 2), norm=False, on='hidden', **encoder):
    options = dict(width=32, depth=2, heads=2) | encoder
    return objectives.MaskedPrediction(
        tokenizer=partial(tokenizers.patches, patch=patch),
        mask=partial(masks.random, ratio=0.75),
        hide=hiding.drop,
        encoder=ViT(**options),
        predictor=dict(pixels=SelfAttention(width=16, depth=1, heads=2)),
        terms=dict(pixels=objectives.Term(partial(targets.pixels, norm=norm), losses.mse, on, 1.0)),
    )


def start(objective, data, seed=0):
    """Fresh parameters."""
    key = jax.random.key(seed)
    init = jax.jit(lambda batch: objective.init(key, data.augment(key, batch, train=False), key, train=False)['params'])
    return init(next(data.val(2)))


@pytest.fixture(scope='session')
def make_data():
    return labelled


@pytest.fixture(scope='session')
def make_objective():
    return small_objective


@pytest.fixture(scope='session')
def make_params():
    return start


@pytest.fixture(scope='session')
def digit_arrays():
    """Pixels f32[n, 64] in [0, 1] and labels, the first NUM_TRAIN for training."""
    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    return (raw.data[order] / 16).astype(np.float32), raw.target[order].astype(np.int32)


@pytest.fixture(scope='session')
def digits(digit_arrays):
    pixels, labels = digit_arrays
    return labelled(np.round(pixels * 255).astype(np.uint8).reshape(-1, 8, 8, 1), labels, NUM_TRAIN)


@pytest.fixture(scope='session')
def objective():
    return small_objective()


@pytest.fixture(scope='session')
def params(objective, digits):
    return start(objective, digits)
