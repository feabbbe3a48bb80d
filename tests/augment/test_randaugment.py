"""Each operation against Pillow (ImageOps, ImageEnhance, Image.transform) as timm calls it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mim_jax.augment import randaugment as ra

RNG = np.random.default_rng(0)
IMAGE = np.clip(RNG.normal(110, 40, (36, 28, 3)), 20, 230).astype(np.uint8)
FILL = (10, 20, 30)


def solarize_add(image, add, threshold=128):
    return image.point([min(255, i + add) if i < threshold else i for i in range(256)] * 3)


def enhanced(pillow):
    return lambda image, level, sign: pillow(image).enhance(max(0.1, 1 + sign * level / 10 * 0.9))


POINTWISE = {
    ra.autocontrast: lambda image, level, sign: ImageOps.autocontrast(image),
    ra.equalize: lambda image, level, sign: ImageOps.equalize(image),
    ra.invert: lambda image, level, sign: ImageOps.invert(image),
    ra.posterize: lambda image, level, sign: ImageOps.posterize(image, 4 - int(level / 10 * 4)),
    ra.solarize: lambda image, level, sign: ImageOps.solarize(image, 256 - min(256, int(level / 10 * 256))),
    ra.solarize_add: lambda image, level, sign: solarize_add(image, min(128, int(level / 10 * 110))),
    ra.color: enhanced(ImageEnhance.Color),
    ra.contrast: enhanced(ImageEnhance.Contrast),
    ra.brightness: enhanced(ImageEnhance.Brightness),
    ra.sharpness: enhanced(ImageEnhance.Sharpness),
}


@pytest.mark.parametrize('level', [2.0, 9.0])
@pytest.mark.parametrize('sign', [1.0, -1.0])
@pytest.mark.parametrize('op', POINTWISE, ids=lambda op: op.__name__)
def test_pointwise_operation_is_pillows(op, level, sign):
    want = np.asarray(POINTWISE[op](Image.fromarray(IMAGE), level, sign), np.float32)
    got = jax.jit(op)(jnp.asarray(IMAGE, jnp.float32), level, sign)
    np.testing.assert_allclose(got, want, atol=2.0 if op is ra.sharpness else 1.01)
    assert (got == jnp.round(got)).all()


@pytest.mark.parametrize('op', [ra.autocontrast, ra.equalize])
def test_flat_image_is_unchanged(op):
    flat = jnp.full((8, 8, 3), 77.0)
    np.testing.assert_array_equal(op(flat, 9.0, 1.0), flat)


@pytest.mark.parametrize('sign', [1.0, -1.0])
@pytest.mark.parametrize('index', range(5))
def test_affine_operation_is_pillows(index, sign):
    level, (height, width, _) = 7.0, IMAGE.shape
    image, amount = Image.fromarray(IMAGE), sign * level / 10
    options = dict(resample=Image.Resampling.BILINEAR, fillcolor=FILL)
    shear, x, y = 0.3 * amount, 0.45 * amount * width, 0.45 * amount * height
    matrix = {1: (1, shear, 0, 0, 1, 0), 2: (1, 0, 0, shear, 1, 0), 3: (1, 0, x, 0, 1, 0), 4: (1, 0, 0, 0, 1, y)}
    if index == 0:
        want = image.rotate(30 * amount, **options)
    else:
        want = image.transform(image.size, Image.Transform.AFFINE, matrix[index], **options)
    got = jax.jit(ra.warp)(IMAGE.astype(np.float32), *ra.affine(index, amount, height, width), np.float32(FILL))
    off = np.abs(np.asarray(got) - np.asarray(want, np.float32)).max(-1)
    assert (off > 1.5).mean() < 0.01  # a pixel whose source lies on the border may fall on either side of it


@pytest.mark.parametrize('channels', [1, 3])
def test_policy_changes_most_images_and_keeps_the_range(channels):
    image = jnp.asarray(RNG.uniform(0, 1, (64, 16, 16, channels)), jnp.float32)
    got = jax.jit(jax.vmap(ra.rand_augment))(jax.random.split(jax.random.key(0), 64), image)
    assert got.shape == image.shape and got.min() >= 0 and got.max() <= 1
    same = (jnp.abs(got - image) < 0.5 / 255 + 1e-6).all((1, 2, 3)).mean()
    assert 0.1 < same < 0.5  # a quarter keeps both layers off


def test_probability_zero_only_quantises():
    image = jnp.asarray(IMAGE / 255.0, jnp.float32)
    got = jax.jit(partial(ra.rand_augment, prob=0.0))(jax.random.key(0), image)
    np.testing.assert_allclose(got, image, atol=1e-6)


@pytest.mark.parametrize('colours', [3, 256])
def test_equalize_in_both_forms_is_pillows(form, colours):
    image = (IMAGE // (256 // colours) * (256 // colours)).astype(np.uint8)
    expected = ImageOps.equalize(Image.fromarray(image))
    np.testing.assert_array_equal(ra.equalize(jnp.asarray(image, jnp.float32), 9.0, 1.0), np.asarray(expected))
