"""The composed augmentation: units, independence of the batch split, eval, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mim_jax import augment
from mim_jax.errors import InputError

RNG = np.random.default_rng(0)
STATS = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
ALL = dict(jitter=(0.4, 0.4, 0.4), randaugment={}, erase=0.25)


def records(rows=4, canvas=(24, 20), channels=3, dtype=np.uint8):
    image = RNG.integers(0, 256, (rows, *canvas, channels)).astype(dtype)
    size = np.tile(np.int32(canvas), (rows, 1))
    return dict(image=image, size=size, label=np.arange(rows), valid=np.ones(rows, bool))


def apply(seed, batch, **options):
    return jax.jit(partial(augment.image, **options))(jax.random.key(seed), batch)


@pytest.mark.parametrize('options', [{}, ALL, dict(crop='pad'), dict(crop=None)], ids=['crop', 'all', 'pad', 'none'])
def test_a_row_depends_on_its_key_alone(options):
    batch = records(canvas=(16, 16))
    f = jax.jit(partial(augment.image, image_size=(16, 16), **STATS, **options))
    keys = jax.random.split(jax.random.key(0), 4)
    whole = f(keys, batch)
    halves = [f(keys[i : i + 2], {k: v[i : i + 2] for k, v in batch.items()}) for i in (0, 2)]
    np.testing.assert_allclose(whole['image'], np.concatenate([h['image'] for h in halves]), atol=2e-5)
    assert whole['image'].dtype == jnp.float32 and set(whole) == {'image', 'label', 'valid'}
    assert f(jax.random.key(0), batch)['image'].shape == (4, 16, 16, 3)


@pytest.mark.parametrize(('dtype', 'top'), [(np.uint8, 255.0), (np.uint16, 65535.0), (np.float32, 1.0)])
def test_static_path_only_normalises(dtype, top):
    batch = records(dtype=dtype)
    got = apply(0, batch, image_size=(24, 20), crop=None, flip=False, **STATS)['image']
    want = (batch['image'].astype(np.float64) / top - STATS['mean']) / STATS['std']
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('channels', 'image_size'), [(1, (8, 8)), (6, (12, 20))])
def test_any_channels_and_non_square(channels, image_size):
    stats = dict(mean=(0.5,) * channels, std=(0.25,) * channels)
    got = apply(0, records(channels=channels), image_size=image_size, **stats, **ALL)['image']
    assert got.shape == (4, *image_size, channels) and jnp.isfinite(got).all()


def test_eval_is_resize_and_centre_crop():
    coarse = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((40, 32), Image.Resampling.BICUBIC))
    batch = dict(image=np.zeros((1, 48, 48, 3), np.uint8), size=np.int32([[32, 40]]))
    batch['image'][0, :32, :40] = smooth
    got = apply(0, batch, train=False, image_size=(14, 14), mean=(0,), std=(1 / 255,))['image'][0]
    want = Image.fromarray(smooth).resize((20, 16), Image.Resampling.BICUBIC).crop((3, 1, 17, 15))
    np.testing.assert_allclose(got, np.asarray(want), atol=2.0)  # Pillow rounds twice


def test_padding_of_the_canvas_never_shows():
    batch = records(rows=8, canvas=(32, 32))
    batch['size'][:] = (9, 13)
    shown = np.zeros_like(batch['image'])
    shown[:, :9, :13] = 100
    batch['image'] = np.where(shown, shown, 255).astype(np.uint8)
    for train in (True, False):
        got = apply(1, batch, train=train, image_size=(8, 8), mean=(0,), std=(1 / 255,))['image']
        np.testing.assert_allclose(got, 100, atol=1e-3)


def test_record_without_pixels_stays_finite():
    batch = records() | dict(size=np.zeros((4, 2), np.int32))
    for train in (True, False):
        got = apply(0, batch, train=train, image_size=(8, 8), **STATS)['image']
        assert jnp.isfinite(got).all()


def test_flip_is_a_coin_per_row():
    batch = records(rows=200, canvas=(4, 4))
    got = apply(0, batch, image_size=(4, 4), crop=None, mean=(0,), std=(1 / 255,))['image']
    same = np.isclose(got, batch['image'], atol=1e-3).all((1, 2, 3))
    mirror = np.isclose(got, batch['image'][:, :, ::-1], atol=1e-3).all((1, 2, 3))
    assert (same | mirror).all() and 0.35 < same.mean() < 0.65


@pytest.mark.parametrize(
    ('options', 'word'),
    [
        (dict(crop='centre'), 'centre'),
        (dict(crop='pad'), 'canvas'),
        (dict(mean=(0.5, 0.5)), '3 channels'),
        (dict(batch=records(dtype=np.int32)), 'int32'),
        (dict(batch=records(dtype=np.float32), jitter=(0.4, 0.4, 0.4)), 'float32'),
    ],
)
def test_wrong_options_are_refused(options, word):
    options = dict(batch=records(), image_size=(8, 8)) | STATS | options
    with pytest.raises(InputError, match=word):
        apply(0, **options)


@pytest.mark.parametrize(
    'options',
    [dict(crop='random_resized'), dict(crop='multi_scale'), dict(crop='pad'), dict(crop=None)],
    ids=lambda o: str(o['crop']),
)
def test_every_frame_of_a_clip_is_treated_as_its_image_would_be(options):
    batch = records(canvas=(16, 16))
    frames = RNG.integers(0, 256, (4, 3, 16, 16, 3), np.uint8)
    options = options | ALL | dict(image_size=(16, 16), erase=0.0) | STATS
    clips = jax.jit(partial(augment.video, **options))(jax.random.key(0), dict(batch, video=frames))['video']
    assert clips.shape == (4, 3, 16, 16, 3)
    for t in range(3):
        alone = apply(0, batch | dict(image=frames[:, t]), **options)['image']
        np.testing.assert_allclose(clips[:, t], alone, atol=2e-5)


def test_erasing_takes_the_same_box_of_every_frame():
    frames = np.full((4, 3, 16, 16, 1), 128, np.uint8)
    stats = dict(image_size=(16, 16), mean=(0.5,), std=(0.25,), crop=None, flip=False, erase=1.0)
    clips = jax.jit(partial(augment.video, **stats))(jax.random.key(1), records(canvas=(16, 16)) | dict(video=frames))
    gone = np.asarray(jnp.abs(clips['video'] - (128 / 255 - 0.5) / 0.25) > 1e-5)
    assert gone.any() and (gone == gone[:, :1]).mean() > 0.999


@pytest.mark.parametrize(('place', 'left'), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_a_view_at_a_place_along_the_longer_side(place, left):
    batch = records(canvas=(12, 20))
    got = jax.jit(partial(augment.image, train=False, eval_crop=1.0, eval_place=place, image_size=(12, 12), **STATS))(
        jax.random.key(0), batch
    )['image']
    want = (batch['image'][:, :, left : left + 12] / 255 - STATS['mean']) / STATS['std']
    np.testing.assert_allclose(got, want, atol=1e-4)
