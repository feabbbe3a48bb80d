"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch with soft labels, as timm's batch mode."""

import jax
import jax.numpy as jnp

Array = jax.Array


def soft_labels(label: Array, num_classes: int, smoothing: float = 0.0) -> Array:
    """i32[B] -> f32[B, num_classes]: 1 - smoothing on the class, smoothing spread over all. Rows sum to one."""
    return (1 - smoothing) * jax.nn.one_hot(label, num_classes) + smoothing / num_classes


def cutmix_box(key: Array, share: Array, height: int, width: int) -> Array:
    """bool[height, width]: a box of about `share` of the image around a uniform centre, cut at the border."""
    side = jnp.floor(jnp.sqrt(share) * jnp.asarray([height, width], jnp.float32))
    centre = jax.random.randint(key, (2,), 0, jnp.asarray([height, width]))
    low, high = centre - side // 2, centre + side // 2
    row, column = jnp.arange(height)[:, None], jnp.arange(width)
    return (row >= low[0]) & (row < high[0]) & (column >= low[1]) & (column < high[1])


def mixup_cutmix(
    key: Array,
    image: Array,
    label: Array,
    *,
    num_classes: int,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
    prob: float = 1.0,
    smoothing: float = 0.1,
) -> tuple[Array, Array]:
    """Mixes each image with its mirror in the batch: one draw for the whole batch, so `key` is one key.

    image f32[B, ..., h, w, C]; label i32[B]. mixup, cutmix: the alpha of their Beta law, 0 = off; switch: share of CutMix
    where both are on; prob: share of batches mixed; with both off the image may be anything. Returns image f32[B, ..., h, w, C] and target f32[B, num_classes].
    """
    target = soft_labels(label, num_classes, smoothing)
    if not (mixup or cutmix):
        return image, target
    height, width = image.shape[-3:-1]
    which, coin, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    cut = jax.random.bernoulli(which, switch if mixup and cutmix else float(bool(cutmix)))
    share = 1 - jnp.where(
        cut,
        jax.random.beta(cutmix_key, cutmix, cutmix) if cutmix else 1.0,
        jax.random.beta(mixup_key, mixup, mixup) if mixup else 1.0,
    )
    share = jnp.where(jax.random.bernoulli(coin, prob), share, 0.0)
    box = cutmix_box(box_key, share, height, width)[..., None]
    share = jnp.where(cut, box.mean(), share)  # the area really cut
    other = jnp.where(cut, box.astype(jnp.float32), share)  # f32[h, w, 1]
    return image + other * (image[::-1] - image), target + share * (target[::-1] - target)
