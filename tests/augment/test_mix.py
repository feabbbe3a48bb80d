"""Mixup and CutMix against their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.augment.mix import mixup_cutmix, soft_labels

LABEL = jnp.asarray([0, 1, 2, 3])
IMAGE = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 16, 12, 2))


def mix(seed, **options):
    return jax.jit(partial(mixup_cutmix, num_classes=5, **options))(jax.random.key(seed), IMAGE, LABEL)


@pytest.mark.parametrize('options', [{}, dict(cutmix=0.0), dict(mixup=0.0), dict(prob=0.5)])
def test_targets_sum_to_one_and_agree_with_the_pixels(options):
    f = jax.jit(partial(mixup_cutmix, num_classes=5, smoothing=0.0, **options))
    for seed in range(8):
        image, target = f(jax.random.key(seed), IMAGE, LABEL)
        np.testing.assert_allclose(target.sum(-1), 1.0, rtol=1e-6)
        # every image is constant (its label), so its mean tells the share of the partner
        np.testing.assert_allclose(image.mean((1, 2, 3)), target @ jnp.arange(5.0), atol=1e-5)


def test_smoothing_as_timm():
    np.testing.assert_allclose(soft_labels(jnp.asarray([1]), 4, 0.1), [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6)
    np.testing.assert_allclose(mix(0)[1].sum(-1), 1.0, rtol=1e-6)


def test_cutmix_pastes_one_box():
    image, target = mix(1, mixup=0.0, smoothing=0.0)
    pasted = np.asarray(image[0, :, :, 0] != 0)
    assert set(np.unique(image[0])) <= {0.0, 3.0}
    assert pasted.any(1).sum() * pasted.any(0).sum() == pasted.sum()
    np.testing.assert_allclose(target[0, 3], pasted.mean(), rtol=1e-5)


def test_off_leaves_the_batch():
    image, target = mix(0, mixup=0.0, cutmix=0.0, smoothing=0.0)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(target, jax.nn.one_hot(LABEL, 5))


def test_share_follows_the_beta_law():
    f = partial(mixup_cutmix, image=IMAGE, label=LABEL, num_classes=5, cutmix=0.0, smoothing=0.0)
    share = jax.jit(jax.vmap(f))(jax.random.split(jax.random.key(0), 2000))[1][:, 0, 3]
    assert abs(share.mean() - 0.5) < 0.02 and abs(share.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01
