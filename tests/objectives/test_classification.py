"""The supervised objective against its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mim_jax import build
from mim_jax.augment.mix import mixup_cutmix
from mim_jax.models import ViT
from mim_jax.tokenizers import field, patches

OFF = dict(mixup=0.0, cutmix=0.0, smoothing=0.0)


def task(key='image', patch=(4, 4), **mix):
    encoder = ViT(width=16, depth=1, heads=2, class_token=False)
    return build.classifier(partial(patches, key=key, patch=patch), encoder, 3, 'mean', **OFF | mix)


def batch(key='image', shape=(8, 8, 1)):
    x = jax.random.normal(jax.random.key(0), (4, *shape))
    return {key: x, 'label': jnp.array([0, 1, 2, -1]), 'valid': jnp.array([True, True, False, True])}


@pytest.mark.parametrize(('key', 'patch', 'shape'), [('image', (4, 4), (8, 8, 1)), ('video', (2, 4, 4), (4, 8, 8, 1))])
def test_loss_is_the_cross_entropy_of_rows_that_count(key, patch, shape):
    objective, rows, keys = task(key, patch), batch(key, shape), jax.random.split(jax.random.key(1), 4)
    assert objective.field == key == field(objective.tokenizer)
    variables = objective.init(jax.random.key(2), rows, keys, train=False)
    variables['params']['classifier']['head']['kernel'] += jax.random.normal(jax.random.key(3), (16, 3))
    for train in (False, True):
        loss, aux = objective.apply(variables, rows, keys, train=train)
        logits, _ = objective.apply(variables, rows, method='logits')
        want = optax.softmax_cross_entropy_with_integer_labels(logits[:2], rows['label'][:2]).mean()
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        np.testing.assert_allclose(aux['baseline'], np.log(2), rtol=1e-5)  # two classes, one row each
        np.testing.assert_allclose(aux['top1'], (logits.argmax(-1) == rows['label'])[:2].mean())
        assert aux['rows'] == 2


def test_training_mixes_the_field_of_the_batch():
    objective, rows, keys = task(mixup=0.8, cutmix=1.0, smoothing=0.1), batch(), jax.random.split(jax.random.key(1), 4)
    rows['label'], rows['valid'] = jnp.array([0, 1, 2, 0]), jnp.ones(4, bool)
    variables = objective.init(jax.random.key(2), rows, keys, train=False)
    x, target = mixup_cutmix(keys[0], rows['image'], rows['label'], num_classes=3)
    logits, _ = objective.apply(variables, rows | dict(image=x), method='logits')
    want = optax.softmax_cross_entropy(logits, target).mean()
    np.testing.assert_allclose(objective.apply(variables, rows, keys, train=True)[0], want, rtol=1e-5)
