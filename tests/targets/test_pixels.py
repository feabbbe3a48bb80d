import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import InputError
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


def video(channels=3):
    clip = np.random.default_rng(0).normal(3, 2, size=(2, 4, 8, 4, channels)).astype(np.float32)
    clip *= np.arange(1, channels + 1)
    batch = {'video': jnp.array(clip)}
    return batch, patches(batch, key='video', patch=(2, 4, 4))


@pytest.mark.parametrize('channels', [1, 3])
def test_channels_of_a_cube_are_normalised_one_by_one(form, channels):
    batch, tokens = video(channels)
    raw = np.asarray(tokens.raw, np.float64).reshape(2, 4, 32, channels)
    mean, std = raw.mean(2), raw.std(2, ddof=1) + 1e-6
    goal = (raw - mean[:, :, None]) / std[:, :, None]
    np.testing.assert_allclose(
        pixels(batch, tokens, norm='channel', key='video'), goal.reshape(tokens.raw.shape), atol=2e-5
    )
    found = patch_statistics(tokens.raw, channels)
    for got, wanted in zip(found, (mean, std), strict=True):
        assert got.shape == (2, 4, channels)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_first_frame_of_each_cube_is_normalised_by_itself(form):
    batch, tokens = video()
    first = patches({'video': batch['video'][:, ::2]}, key='video', patch=(1, 4, 4))
    for norm in (False, True, 'channel'):
        half = pixels(batch, tokens, norm=norm, key='video', first=1 / 2)
        np.testing.assert_allclose(half, pixels(batch, first, norm=norm, key='video'), atol=1e-6)
        assert half.shape[-1] == tokens.raw.shape[-1] // 2


def test_wrong_options_are_named():
    batch, tokens = video()
    for options, says in (
        (dict(norm='channels'), "'channels' is not one of"),
        (dict(norm='channel'), "no array 'image' in the batch, only video"),
        (dict(first=0.0), 'first=0.0'),
        (dict(first=1 / 7), '96 values'),
        (dict(first=2.0), 'first=2.0'),
    ):
        with pytest.raises(InputError, match=says):
            pixels(batch, tokens, **options)


def test_a_flat_cube_of_normalised_pixels_is_exactly_zero():
    """-2.1179 has no exact mean in f32; the rest, over a deviation of 1e-6, would be asked for as if it were a picture."""
    black = jnp.broadcast_to(jnp.array([-2.1179039, -2.0357141, -1.8044444], jnp.float32), (2, 4, 16, 16, 3))
    tokens = patches({'video': black}, key='video', patch=(2, 8, 8))
    np.testing.assert_array_equal(
        jax.jit(lambda t: pixels({'video': black}, t, norm='channel', key='video'))(tokens), 0
    )
