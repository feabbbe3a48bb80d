"""Colour operations against Pillow's ImageEnhance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mim_jax.augment import colour

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ('ours', 'pillow'),
    [
        (colour.brightness, ImageEnhance.Brightness),
        (colour.contrast, ImageEnhance.Contrast),
        (colour.saturation, ImageEnhance.Color),
    ],
)
def test_matches_pillow(ours, pillow, factor):
    want = np.asarray(pillow(Image.fromarray(IMAGE)).enhance(factor), np.float32)
    got = 255 * ours(jnp.asarray(IMAGE / 255.0), factor)
    np.testing.assert_allclose(got, want, atol=1.8)  # Pillow rounds the grey image, its mean and the result


@pytest.mark.parametrize('channels', [1, 3, 6])
def test_jitter_takes_any_channels_and_stays_in_range(channels):
    image = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (4, 8, 8, channels)), jnp.float32)
    jitter = jax.jit(jax.vmap(lambda key, x: colour.jitter(key, x, (0.4, 0.4, 0.4))))
    got = jitter(jax.random.split(jax.random.key(0), 4), image)
    assert got.shape == image.shape and got.min() >= 0 and got.max() <= 1
    assert (jnp.abs(got - image).max((1, 2, 3)) > 0.01).all()


def test_jitter_of_strength_zero_is_identity():
    image = jnp.asarray(IMAGE / 255.0, jnp.float32)
    np.testing.assert_allclose(colour.jitter(jax.random.key(3), image, (0, 0, 0)), image, atol=1e-6)
