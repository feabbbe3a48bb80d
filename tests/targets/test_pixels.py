import jax.numpy as jnp
import numpy as np

from mim_jax.targets import patch_statistics, pixels
from mim_jax.tokenizers import patches


def test_raw_pixels_are_the_patches():
    image = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    tokens = patches({'image': jnp.array(image)}, patch=(2, 2))
    np.testing.assert_array_equal(pixels({}, tokens), tokens.raw)


def test_normalised_pixels_have_mean_zero_and_unbiased_deviation_one():
    image = np.random.default_rng(0).normal(3, 2, size=(2, 8, 8, 3)).astype(np.float32)
    tokens = patches({'image': jnp.array(image)}, patch=(4, 4))
    raw = np.asarray(tokens.raw, np.float64)
    expected = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, ddof=1, keepdims=True) + 1e-6)
    got = pixels({}, tokens, norm=True)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=2e-6)
    mean, std = patch_statistics(tokens.raw)
    np.testing.assert_allclose(got * std + mean, raw, atol=1e-5)


def test_a_flat_patch_is_finite():
    tokens = patches({'image': jnp.full((1, 4, 4, 1), 0.7)}, patch=(2, 2))
    np.testing.assert_allclose(pixels({}, tokens, norm=True), 0, atol=1e-3)


def test_single_value_patches_are_finite():
    tokens = patches({'image': jnp.arange(4.0).reshape(1, 2, 2, 1)}, patch=(1, 1))
    np.testing.assert_array_equal(pixels({}, tokens, norm=True), 0)
