"""What a config names as its augmentation: from the canvas of the input pipeline to normalised images or clips."""

from functools import partial

import jax
import jax.numpy as jnp

from mim_jax.augment import colour
from mim_jax.augment import crop as crops
from mim_jax.augment import randaugment as policy
from mim_jax.errors import InputError

Array = jax.Array
CROPS = ('random_resized', 'multi_scale', 'pad', None)
TOP = {'uint8': 255.0, 'uint16': 65535.0, 'float32': 1.0}


def image(
    key: Array,
    batch: dict,
    *,
    train: bool = True,
    image_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    field: str = 'image',
    crop: str | None = 'random_resized',
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    pad: int = 4,
    kernel: str = 'bicubic',
    flip: bool = True,
    jitter: tuple[float, float, float] | None = None,
    randaugment: dict | None = None,
    erase: float = 0.0,
    eval_crop: float = 0.875,
    eval_place: float = 0.5,
) -> dict:
    """Crops, flips, colours and normalises a batch on the device; meant to run inside a jitted step.

    key: one, or one per row (then row i depends on key i alone, however the batch is split).
    batch: `field` [B, ..., S_h, S_w, C] uint8, uint16 or float32, its true (h, w) at the top left given by size i32[B, 2];
    other keys pass. All frames of a clip [B, T, S_h, S_w, C] are treated alike. Returns the batch without `size` and with
    `field` f32[B, ..., h, w, C] = (x / 255 - mean) / std (x / 65535 for uint16, x itself for float32).

    crop: 'random_resized' (area `scale`, aspect `ratio`), 'multi_scale' (TSN), 'pad' (shift by up to `pad` pixels) or None; the
    last two take the canvas as it is when it has `image_size`. flip: mirror half of them; off where left and right matter.
    jitter: strengths of brightness, contrast and saturation. randaugment: options of `randaugment.rand_augment`. erase:
    probability of random erasing. Without `train`: a box of `eval_crop` of the largest possible one (0.875 = resize to 256, crop
    224) at `eval_place` of the rest, 0.5 = the centre. Non-integer input has no known range, so jitter and randaugment refuse it.
    Raises InputError.
    """
    canvas = batch[field]
    static = crop in ('pad', None) and canvas.shape[-3:-1] == tuple(image_size)
    check(canvas, static, image_size, mean, std, crop, jitter, randaugment)

    def view(key: Array, pixels: Array, size: Array) -> Array:
        if static:
            return crops.pad_crop(key, pixels, pad) if train and crop == 'pad' else pixels
        size = jnp.maximum(size, 1)  # a record that could not be decoded has none
        if train and crop == 'random_resized':
            return crops.resample(pixels, crops.random_box(key, size, scale, ratio)[0], image_size, kernel=kernel)
        if train and crop == 'multi_scale':
            return crops.resample(pixels, crops.multi_scale_box(key, size), image_size, kernel=kernel)
        box = crops.centre_box(size, image_size, eval_crop, eval_place)
        return crops.resample(pixels, box, image_size, jnp.concatenate([jnp.zeros(2), size]), kernel)

    def frames(change, x: Array) -> Array:  # the same change of each frame
        return jax.vmap(change)(x) if x.ndim == 4 else change(x)

    def row(key: Array, pixels: Array, size: Array) -> Array:
        keys = jax.random.split(key, 5)
        x = view(keys[0], pixels, size) / TOP[canvas.dtype.name]
        x = x if canvas.dtype == jnp.float32 else jnp.clip(x, 0.0, 1.0)  # bicubic overshoots
        if train and flip:
            x = jnp.where(jax.random.bernoulli(keys[1]), x[..., ::-1, :], x)
        if train and jitter:
            x = frames(partial(colour.jitter, keys[2], strengths=jitter), x)
        if train and randaugment is not None:
            x = frames(partial(policy.rand_augment, keys[3], fill=jnp.asarray(mean), **randaugment), x)
        x = (x - jnp.asarray(mean)) / jnp.asarray(std)
        return crops.erase(keys[4], x, erase) if train and erase else x

    keys = key if key.ndim else jax.random.split(key, len(canvas))
    rest = {name: value for name, value in batch.items() if name != 'size'}
    return rest | {field: jax.vmap(row)(keys, canvas, batch['size'])}


video = partial(image, field='video')


def tokens(key: Array, batch: dict, *, train: bool = True, image_size=(), mean=(), std=()) -> dict:
    """Ids as they are: there is nothing to change."""
    del key, train, image_size, mean, std
    return batch


def latents(
    key: Array, batch: dict, *, train: bool = True, image_size=(), mean: tuple[float, ...], std: tuple[float, ...]
) -> dict:
    """Latents batch['image'] f32[B, h, w, C] of an autoencoder, each channel normalised by its mean and std, and nothing else."""
    del key, train, image_size
    return batch | dict(image=(batch['image'] - jnp.asarray(mean)) / jnp.asarray(std))


def check(canvas, static, image_size, mean, std, crop, jitter, randaugment):
    channels, name = canvas.shape[-1], canvas.dtype.name
    if crop not in CROPS:
        raise InputError(f'augment.crop is {crop!r}; choose one of {CROPS}.')
    if crop == 'pad' and not static:
        raise InputError(f"augment.crop='pad' needs data.canvas equal to data.image_size, but the canvas is "
                         f'{canvas.shape[-3:-1]} and the image size {tuple(image_size)}.')  # fmt: skip
    for key, value in (('data.mean', mean), ('data.std', std)):
        if len(value) not in (1, channels):
            raise InputError(f'{key} has {len(value)} numbers but the images have {channels} channels.')
    if name not in TOP:
        raise InputError(f'images are {name}; data.dtype must be one of {tuple(TOP)}.')
    if name == 'float32' and (jitter or randaugment is not None):
        raise InputError('augment.jitter and augment.randaugment need uint8 or uint16 images: float32 has no range.')
