"""RandAugment (arXiv 1909.13719) on one image with timm's increasing operations; `jax.vmap` makes it batched.

Operations take f32[h, w, C] of whole numbers in [0, 255] and a level in [0, 10], and follow Pillow to one grey level.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from mim_jax.augment import colour

Array = jax.Array


def autocontrast(image: Array, level: Array, sign: Array) -> Array:
    low, high = image.min((0, 1)), image.max((0, 1))
    return jnp.where(high > low, jnp.floor((image - low) * (255 / jnp.maximum(high - low, 1)) + 1e-3), image)


def histogram(image: Array) -> Array:
    """i32[C, 256] counts of the grey levels."""

    def scatter(image):
        channel = jnp.arange(image.shape[-1])
        return jnp.zeros((image.shape[-1], 256), jnp.int32).at[channel, image.astype(jnp.int32)].add(1)

    def by_product(image):  # a TPU scatters one element at a time
        high, low = digits(image)
        counts = jnp.einsum('chp,clp->chl', high, low, preferred_element_type=jnp.float32)
        return counts.reshape(-1, 256).astype(jnp.int32)

    return jax.lax.platform_dependent(image, tpu=by_product, default=scatter)


def look_up(table: Array, image: Array) -> Array:
    """The grey level that table i32[C, 256] has for each of the image: f32[h, w, C]."""

    def gather(table, image):
        return table[jnp.arange(image.shape[-1]), image.astype(jnp.int32)].astype(jnp.float32)

    def by_product(table, image):  # grey levels are exact in bf16
        high, low = digits(image)
        table = table.reshape(-1, 16, 16).astype(jnp.bfloat16)
        rows = jnp.einsum('chl,clp->chp', table, low, preferred_element_type=jnp.float32)
        return jnp.where(high > 0, rows, 0).sum(1).T.reshape(image.shape)

    return jax.lax.platform_dependent(table, image, tpu=by_product, default=gather)


def digits(image: Array) -> tuple[Array, Array]:
    """The two hexadecimal digits of grey levels, as one-hot columns of bf16[C, 16, h * w]."""
    level = image.astype(jnp.int32).reshape(-1, image.shape[-1]).T
    return tuple(jax.nn.one_hot(digit, 16, axis=1, dtype=jnp.bfloat16) for digit in (level // 16, level % 16))


def equalize(image: Array, level: Array, sign: Array) -> Array:
    count = histogram(image)
    last = jnp.take_along_axis(count, image.max((0, 1))[:, None].astype(jnp.int32), 1)
    step = (count.sum(-1, keepdims=True) - last) // 255
    table = (step // 2 + jnp.cumsum(count, -1) - count) // jnp.maximum(step, 1)
    table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256))
    return look_up(table, image)


def invert(image: Array, level: Array, sign: Array) -> Array:
    return 255 - image


def posterize(image: Array, level: Array, sign: Array) -> Array:
    step = 2.0 ** (4 + jnp.floor(level / 10 * 4))  # drops 4 (level 0) to 8 bits
    return jnp.floor(image / step) * step


def solarize(image: Array, level: Array, sign: Array) -> Array:
    return jnp.where(image < 256 - jnp.floor(level / 10 * 256), image, 255 - image)


def solarize_add(image: Array, level: Array, sign: Array) -> Array:
    return jnp.where(image < 128, jnp.minimum(image + jnp.floor(level / 10 * 110), 255), image)


def enhance(change, image: Array, level: Array, sign: Array) -> Array:
    factor = jnp.maximum(0.1, 1 + sign * level / 10 * 0.9)
    return jnp.floor(255 * change(image / 255, factor) + 1e-3)


def color(image: Array, level: Array, sign: Array) -> Array:
    return enhance(colour.saturation, image, level, sign)


def contrast(image: Array, level: Array, sign: Array) -> Array:
    return enhance(colour.contrast, image, level, sign)


def brightness(image: Array, level: Array, sign: Array) -> Array:
    return enhance(colour.brightness, image, level, sign)


def sharpness(image: Array, level: Array, sign: Array) -> Array:
    def sharpen(image: Array, factor: Array) -> Array:
        height, width, _ = image.shape
        around = sum(image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
        smooth = (around + 4 * image[1:-1, 1:-1]) / 13
        return colour.blend(image.at[1:-1, 1:-1].set(smooth), image, factor)  # Pillow leaves the border

    return enhance(sharpen, image, level, sign)


def affine(index: Array, amount: Array, height: int, width: int) -> tuple[Array, Array]:
    """Pillow's inverse map of rotate, shear x/y, translate x/y (index 0 to 4): (x, y) read = matrix @ (x, y) + shift.

    amount: signed level / 10. Angles reach 30 degrees, shears 0.3, translations 0.45 of the side.
    """
    angle = jnp.where(index == 0, -amount * jnp.pi / 6, 0.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    shear = 0.3 * amount * jnp.stack([index == 1, index == 2])
    matrix = jnp.stack([jnp.stack([cos, sin + shear[0]]), jnp.stack([shear[1] - sin, cos])])
    centre = jnp.where(index == 0, jnp.asarray([width / 2, height / 2]), 0.0)
    move = 0.45 * amount * jnp.stack([(index == 3) * width, (index == 4) * height])
    return matrix, centre - (matrix * centre).sum(-1) + move


def warp(image: Array, matrix: Array, shift: Array, fill: Array) -> Array:
    """Bilinear affine map; what lies outside becomes `fill` f32[C] or f32[1]."""
    height, width, channels = image.shape
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    x, y = (matrix[i, 0] * x + matrix[i, 1] * y + shift[i] for i in (0, 1))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    read = jax.vmap(lambda c: map_coordinates(c, [y - 0.5, x - 0.5], order=1, mode='nearest'), -1, -1)
    return jnp.where(inside[..., None], jnp.round(read(image)), jnp.broadcast_to(fill, (channels,)))


POINTWISE = (
    autocontrast, equalize, invert, posterize, solarize, solarize_add, color, contrast, brightness, sharpness,
)  # fmt: skip
NUM_OPS = len(POINTWISE) + 5  # and five affine maps


def rand_augment(key: Array, image: Array, *, magnitude=9.0, std=0.5, layers=2, prob=0.5, fill=0.5) -> Array:
    """`layers` random operations, each done with probability `prob` at a level near `magnitude` (of 10).

    The defaults are timm's rand-m9-mstd0.5-inc1. image f32[h, w, C] in [0, 1]; fill, in [0, 1], is what geometric
    operations show outside the image. Returns f32[h, w, C] in [0, 1], quantised to 256 levels.
    """
    height, width, _ = image.shape
    fill = jnp.round(jnp.asarray(fill) * 255)

    def layer(image, keys):
        op = jax.random.randint(keys[0], (), 0, NUM_OPS)
        level = jnp.clip(magnitude + std * jax.random.normal(keys[1]), 0.0, 10.0)
        sign = jax.random.rademacher(keys[2], (), jnp.float32)
        matrix, shift = affine(op - len(POINTWISE), sign * level / 10, height, width)
        branches = POINTWISE + (lambda image, *_: warp(image, matrix, shift, fill),)
        changed = jax.lax.switch(jnp.minimum(op, len(POINTWISE)), branches, image, level, sign)
        return jnp.where(jax.random.bernoulli(keys[3], prob), changed, image), None

    return jax.lax.scan(layer, jnp.round(image * 255), jax.random.split(key, (layers, 4)))[0] / 255
