"""Targets in the space of the input."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from mim_jax.errors import InputError
from mim_jax.tokenizers.tokens import Tokens

NORMS = (False, True, 'channel')
FLAT = (
    2e-6  # relative deviation, epsilon included, below which a patch is one colour and its rounding errors are no goal
)


def patch_statistics(raw: Array, channels: int | None = None, eps: float = 1e-6) -> tuple[Array, Array]:
    """Mean and deviation that normalise patches f32[B, N, R] whose values are stored channels last.

    channels=None, as MAE (arXiv 2111.06377): f32[B, N, 1] over all R values; the deviation is sqrt(variance + eps).
    channels=c, as VideoMAE (arXiv 2203.12602): f32[B, N, c], each channel by itself; the deviation is
    sqrt(variance) + eps. `to_values` repeats them for each value. The variance is unbiased in both; a single value has variance 0.
    """
    raw, groups = raw.astype(jnp.float32), channels or 1
    by_axis, by_product = partial(_moments, channels=groups), partial(_moments_by_product, channels=groups)
    mean, var = by_axis(raw) if groups == 1 else lax.platform_dependent(raw, tpu=by_product, default=by_axis)
    return mean, jnp.sqrt(var + eps) if channels is None else jnp.sqrt(var) + eps


def _moments(raw: Array, channels: int) -> tuple[Array, Array]:
    """Mean and unbiased variance f32[B, N, channels]."""
    values = raw.reshape(*raw.shape[:2], -1, channels)
    mean = values.mean(2)
    return mean, jnp.square(values - mean[:, :, None]).sum(2) / max(values.shape[2] - 1, 1)


def _moments_by_product(raw: Array, channels: int) -> tuple[Array, Array]:
    """The same for TPUs, which pad an axis of three channels to 128."""

    def total(x):
        return jnp.einsum('bnr,rc->bnc', x, _channel_of(raw.shape[-1], channels), precision='highest')

    count = raw.shape[-1] // channels
    mean = total(raw) / count
    return mean, total(jnp.square(raw - to_values(mean, raw.shape[-1]))) / max(count - 1, 1)


def to_values(x: Array, width: int) -> Array:
    """x f32[B, N, C] of channels for each value of their patches, f32[B, N, width]: exact, also by a product."""
    if x.shape[-1] == 1:
        return x

    def product(x):
        return jnp.einsum('bnc,rc->bnr', x, _channel_of(width, x.shape[-1]), precision='highest')

    return lax.platform_dependent(x, tpu=product, default=lambda x: jnp.tile(x, width // x.shape[-1]))


def _channel_of(width: int, channels: int) -> Array:
    """Of each value of a patch, one-hot f32[width, channels]."""
    return jax.nn.one_hot(jnp.arange(width) % channels, channels)


def normalised(raw: Array, channels: int | None = None) -> Array:
    """Patches f32[B, N, R] less their mean over their deviation, see `patch_statistics`; those of one colour are 0."""
    mean, std = patch_statistics(raw, channels)
    scale = jnp.where(std > FLAT * (1 + jnp.abs(mean)), 1 / std, 0)
    return (raw - to_values(mean, raw.shape[-1])) * to_values(scale, raw.shape[-1])


def pixels(
    batch: dict, tokens: Tokens, teacher=None, *, norm: bool | str = False, key: str = 'image', first: float = 1.0
) -> Array:
    """The raw patches f32[B, N, R], or what is left of them.

    Args:
        batch: arrays by name.
        tokens: of batch[key].
        teacher: not asked.
        norm: False; True: each patch less its mean over its deviation (MAE, arXiv 2111.06377); 'channel': each channel
            of a patch by its own mean and deviation (VideoMAE, arXiv 2203.12602). See `patch_statistics`.
        key: the array that was cut into patches; norm='channel' takes the number of channels from it.
        first: leading share of each patch along its first axis that is asked for, before it is normalised: 1/2 of cubes
            of two frames is their first frame (arXiv 2205.09113, whose code takes the second in the last cube).

    Raises:
        InputError: unknown norm, no such array in the batch, or a share that is not a whole number of values.
    """
    del teacher
    width = round(tokens.raw.shape[-1] * first)
    if not 0 < width <= tokens.raw.shape[-1] or abs(width - tokens.raw.shape[-1] * first) > 1e-3:
        raise InputError(f'pixels: first={first} of patches of {tokens.raw.shape[-1]} values is not a share above 0')
    raw = tokens.raw[..., :width].astype(jnp.float32)
    if norm not in NORMS:
        raise InputError(f"pixels: norm={norm!r} is not one of False, True, 'channel'")
    if norm == 'channel' and key not in batch:
        raise InputError(
            f"pixels: norm='channel' finds no array {key!r} in the batch, only {', '.join(batch)}: set key"
        )
    if norm:
        raw = normalised(raw, batch[key].shape[-1] if norm == 'channel' else None)
    return jax.lax.stop_gradient(raw)
