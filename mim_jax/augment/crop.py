"""Crops, resampling and erasing of one image or clip with static shapes; `jax.vmap` makes them batched."""

import jax
import jax.numpy as jnp

Array = jax.Array


def bicubic(x: Array) -> Array:
    """Keys' cubic with a = -0.5, Pillow's BICUBIC (support 2)."""
    x, a = jnp.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def bilinear(x: Array) -> Array:
    """The triangle, Pillow's BILINEAR (support 1)."""
    return jnp.maximum(1 - jnp.abs(x), 0.0)


KERNELS = {'bicubic': bicubic, 'bilinear': bilinear}


def weights(start: Array, length: Array, out: int, canvas: int, within: tuple[Array, Array], kernel: str) -> Array:
    """One axis of an antialiased resampling as a matrix, f32[out, canvas].

    Output pixel i covers [start + i * length / out, start + (i + 1) * length / out) of the canvas; only the pixels of
    `within` (first, one past the last) take part. Shrinking widens the kernel as Pillow does.
    """
    scale = length / out
    centre = start + (jnp.arange(out) + 0.5) * scale
    pixel = jnp.arange(canvas)
    w = KERNELS[kernel]((pixel + 0.5 - centre[:, None]) / jnp.maximum(scale, 1.0))
    w = jnp.where((pixel >= within[0]) & (pixel < within[1]), w, 0.0)
    return w / w.sum(-1, keepdims=True)


def resample(image: Array, box: Array, out: tuple[int, int], within: Array | None = None, kernel='bicubic') -> Array:
    """Resizes the box of one image, or of all frames of a clip, to `out` = (h, w) pixels: two products, no gather.

    image [..., S_h, S_w, C]; box f32[4] (top, left, height, width) in pixels, need not be whole; within f32[4], same form:
    the pixels that may be read (default: those of the box, Pillow's `crop(box).resize(out)`). Returns f32[..., h, w, C].
    """
    within = box if within is None else within
    rows, columns = (
        weights(box[i], box[i + 2], out[i], image.shape[i - 3], (within[i], within[i] + within[i + 2]), kernel)
        for i in (0, 1)
    )
    return product(rows, columns, image)


def product(rows: Array, columns: Array, image: Array) -> Array:
    """rows f32[h, S_h] and columns f32[w, S_w] times image [..., S_h, S_w, C]: f32[..., h, w, C]."""
    image = jnp.einsum('hs,...stc->...htc', rows, image.astype(jnp.float32), precision='high')
    return jnp.einsum('wt,...htc->...hwc', columns, image, precision='high')


def random_box(key: Array, size: Array, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), tries=10) -> tuple[Array, Array]:
    """torchvision's RandomResizedCrop box: the first of `tries` random boxes that fits, else the centre.

    size [2] true (h, w) of the image; scale: share of the area; ratio: width / height, log-uniform.
    Returns box f32[4] (top, left, height, width; whole numbers) and bool[] whether a try did fit.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    size = size.astype(jnp.float32)
    area = jax.random.uniform(area_key, (tries,), minval=scale[0], maxval=scale[1]) * size.prod()
    low, high = jnp.log(jnp.asarray(ratio, jnp.float32))
    aspect = jnp.exp(jax.random.uniform(ratio_key, (tries,), minval=low, maxval=high))
    sides = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect], -1)))  # f32[tries, 2]
    fits = ((sides > 0) & (sides <= size)).all(-1)
    found = fits.any()
    whole = jnp.minimum(size, jnp.round(size[::-1] / jnp.asarray([ratio[0], 1 / ratio[1]])))
    first = fits & (jnp.cumsum(fits) == 1)  # picked by a sum: a gather is dear on TPU
    side = jnp.where(found, jnp.where(first[:, None], sides, 0).sum(0), whole)
    anywhere = jnp.floor(jax.random.uniform(place_key, (2,)) * (size - side + 1))
    return jnp.concatenate([jnp.where(found, anywhere, (size - side) // 2), side]), found


def multi_scale_box(key: Array, size: Array, scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)) -> Array:
    """The multi-scale crop of TSN (arXiv 1608.00859), as VideoMAE pretrains with: f32[4].

    Height and width are scales of the shorter side, neighbours in `scales` or the same; the place is one of 13: a 3 x 3 lattice
    of corners, edges and centre, and the four points halfway to the corners.
    """
    pair_key, place_key = jax.random.split(key)
    pairs = [(a, b) for i, a in enumerate(scales) for j, b in enumerate(scales) if abs(i - j) <= 1]
    places = [(y / 2, x / 2) for y in range(3) for x in range(3)] + [(y, x) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    pair, place = (
        (jax.nn.one_hot(jax.random.randint(k, (), 0, len(table)), len(table)) @ jnp.asarray(table, jnp.float32))
        for k, table in ((pair_key, pairs), (place_key, places))
    )  # picked by a product: a gather is dear on TPU
    size = size.astype(jnp.float32)
    side = jnp.clip(jnp.floor(pair * size.min()), 1, size)
    return jnp.concatenate([jnp.floor(place * (size - side)), side])


def centre_box(size: Array, out: tuple[int, int], share: float, place: float = 0.5) -> Array:
    """The box of `out`'s aspect that takes `share` of the largest one inside (h, w) = size. f32[4].

    place: where it lies along each side, 0 the top left, 0.5 the centre, 1 the bottom right.
    """
    size = size.astype(jnp.float32)
    side = share * jnp.minimum(size[0] / out[0], size[1] / out[1]) * jnp.asarray(out, jnp.float32)
    return jnp.concatenate([(size - side) * place, side])


def pad_crop(key: Array, image: Array, pad: int) -> Array:
    """Pads by `pad` zeros on every side and crops back at random (the CIFAR recipe). [..., h, w, C] -> f32[..., h, w, C]."""
    height, width, _ = image.shape[-3:]
    down, right = jax.random.randint(key, (2,), -pad, pad + 1)
    rows = jnp.arange(height)[:, None] + down == jnp.arange(height)
    columns = jnp.arange(width)[:, None] + right == jnp.arange(width)
    return product(rows.astype(jnp.float32), columns.astype(jnp.float32), image)


def erase(key: Array, image: Array, prob: float, area=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3)) -> Array:
    """Random erasing (arXiv 1708.04896), noise filling as in timm: with `prob` a random box becomes N(0, 1).

    image f32[..., h, w, C], already normalised; all frames of a clip lose the same box.
    """
    coin, where, noise = jax.random.split(key, 3)
    height, width, _ = image.shape[-3:]
    (top, left, h, w), found = random_box(where, jnp.asarray([height, width]), area, ratio)
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    inside = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
    chosen = found & (jax.random.uniform(coin) < prob)
    return jnp.where(chosen & inside, jax.random.normal(noise, image.shape), image)
