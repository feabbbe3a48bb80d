"""Resampling against Pillow, boxes against torchvision's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mim_jax.augment import crop

RNG = np.random.default_rng(0)
PILLOW = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


@pytest.mark.parametrize('kernel', ['bicubic', 'bilinear'])
@pytest.mark.parametrize(
    ('box', 'out'), [((3, 5, 20, 31), (12, 16)), ((0, 0, 7, 9), (16, 24)), ((11, 2, 1, 40), (8, 8))]
)
def test_resample_is_pillow_crop_resize(kernel, box, out):
    image = RNG.integers(0, 256, (40, 48, 2), np.uint8)
    got = crop.resample(image, jnp.asarray(box, jnp.float32), out, kernel=kernel)
    top, left, height, width = box
    for c in range(2):
        plane = Image.fromarray(image[..., c].astype(np.float32), 'F').crop((left, top, left + width, top + height))
        np.testing.assert_allclose(got[..., c], plane.resize(out[::-1], PILLOW[kernel]), atol=1e-3 * 255)


def test_resample_with_fractional_box_is_pillow_resize_box():
    image = RNG.uniform(0, 255, (30, 30)).astype(np.float32)
    got = crop.resample(image[..., None], jnp.asarray([2.5, 3.25, 20.0, 24.5]), (9, 11), jnp.asarray([0, 0, 30, 30]))
    want = Image.fromarray(image, 'F').resize((11, 9), PILLOW['bicubic'], box=(3.25, 2.5, 27.75, 22.5))
    np.testing.assert_allclose(got[..., 0], want, atol=1e-2)


def test_resample_reads_nothing_outside_the_box():
    image = np.full((16, 16, 1), 1e6, np.float32)
    image[2:10, 3:9] = 7.0
    box = jnp.asarray([2, 3, 8, 6], jnp.float32)
    np.testing.assert_allclose(crop.resample(image, box, (5, 5)), 7.0, rtol=1e-5)


def test_random_boxes_fit_and_follow_scale_and_ratio():
    keys = jax.random.split(jax.random.key(0), 4000)
    size = jnp.asarray([70, 70])
    box, found = jax.jit(jax.vmap(lambda k: crop.random_box(k, size)))(keys)
    top, left, height, width = np.asarray(box).T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 70).all() and (left + width <= 70).all()
    assert found.mean() > 0.99 and (box == jnp.round(box)).all()
    share, aspect = height * width / 4900, width / height
    assert 0.19 < share.min() < 0.23 and share.max() > 0.9
    assert 0.70 < aspect.min() and aspect.max() < 1.40
    assert abs(np.log(aspect).mean()) < 0.03  # log-uniform: centred at a square
    assert top.min() == 0 and (top + height).max() == 70 and left.min() == 0 and (left + width).max() == 70


@pytest.mark.parametrize(
    ('size', 'want'), [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((9, 9), (0, 0, 9, 9))]
)
def test_box_that_never_fits_falls_back_to_the_centre(size, want):
    box, found = crop.random_box(jax.random.key(0), jnp.asarray(size), scale=(4.0, 5.0))
    assert not found
    np.testing.assert_array_equal(box, want)


def test_centre_box_is_resize_then_centre_crop():
    np.testing.assert_allclose(crop.centre_box(jnp.asarray([256, 512]), (224, 224), 0.875), (16, 144, 224, 224))
    np.testing.assert_allclose(crop.centre_box(jnp.asarray([100, 80]), (20, 40), 1.0), (30, 0, 40, 80))


def test_pad_crop_shifts_and_fills_with_zeros():
    image = RNG.integers(1, 256, (8, 8, 2), np.uint8)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 8, j : j + 8].tobytes() for i in range(5) for j in range(5)}
    got = jax.jit(jax.vmap(lambda k: crop.pad_crop(k, image, 2)))(jax.random.split(jax.random.key(0), 300))
    seen = {x.tobytes() for x in np.asarray(got).astype(np.uint8)}
    assert seen == windows


def test_erase_fills_one_box_with_noise():
    erase = jax.jit(jax.vmap(lambda key: crop.erase(key, jnp.full((32, 32, 3), 9.0), 0.5)))
    got = np.asarray(erase(jax.random.split(jax.random.key(0), 400)))
    changed = (got != 9).all(-1)
    some = changed.any((1, 2))
    assert 0.4 < some.mean() < 0.6
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    np.testing.assert_array_equal(rows * columns, changed.sum((1, 2)))
    share = changed[some].mean((1, 2))
    assert share.min() > 0.01 and share.max() < 0.36
    assert abs(got[changed].mean()) < 0.02 and abs(got[changed].std() - 1) < 0.02


def test_multi_scale_boxes_are_those_of_tsn():
    size = jnp.asarray([240, 320])
    boxes = jax.vmap(lambda key: crop.multi_scale_box(key, size))(jax.random.split(jax.random.key(0), 4000))
    top, left, height, width = np.asarray(boxes).T
    sides = [240, 210, 180, 158]  # floor of 240 x 1, 0.875, 0.75, 0.66
    pairs = {(h, w) for h, w in zip(height, width, strict=True)}
    assert pairs == {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 240).all() and (left + width <= 320).all()
    small = (height == 158) & (width == 158)
    places = {(round((240 - 158) * y), round((320 - 158) * x)) for y in (0, 0.5, 1) for x in (0, 0.5, 1)}
    places |= {(int((240 - 158) * y), int((320 - 158) * x)) for y in (0.25, 0.75) for x in (0.25, 0.75)}
    assert set(zip(top[small], left[small], strict=True)) == places


def test_a_multi_scale_box_of_a_tiny_image_has_a_pixel():
    boxes = jax.vmap(lambda key: crop.multi_scale_box(key, jnp.asarray([1, 5])))(
        jax.random.split(jax.random.key(0), 50)
    )
    assert (boxes[:, 2:] >= 1).all() and (boxes[:, :2] + boxes[:, 2:] <= jnp.asarray([1, 5])).all()
