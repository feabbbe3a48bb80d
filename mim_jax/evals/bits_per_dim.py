"""How likely images are under a model of noise: a bound in bits a number."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import InputError
from mim_jax.evals.features import everywhere, put
from mim_jax.evals.sampling import image_shape

LEVELS = 256
SHARP = math.exp(-13.3 / 2)  # sigma / alpha where pixels are read off: 8 bits are certain there


def bits_per_dim(objective, data, *, draws: int = 8, batch_size: int = 32, seed: int = 0) -> Callable:
    """`params -> {'eval/bits_per_dim', ...}`: the variational bound in continuous time (VDM, arXiv 2107.00630) of the validation images.

    Three parts: what noise at time 1 still tells of the image, the squared error of the expected noise over all levels evenly in the
    logarithm of sigma / alpha, and the bits of 8-bit pixels read off where they are hardly noised. The model is told no class. Images
    are those of evaluation, rounded to 256 levels. bits_per_dim_error is the standard error that comes from drawing levels and noise; they
    are spread evenly over those of an image, which makes it an upper estimate.

    Args:
        objective: `Denoise` of pixels.
        draws: levels of each image, 2 or more, spread evenly.
        batch_size: rows at once, each `draws` times.
        seed: of levels and noise.

    Raises:
        InputError: latents, which are no pixels, or a schedule that ends in noise alone, where the levels have no end.
    """
    if draws < 2:
        raise InputError(f'evals.bits_per_dim.draws={draws}: it has to be at least 2, to tell the error')
    if data.decode:
        raise InputError(
            'evals.bits_per_dim is of pixels, but the data are latents: take it out of evals_often and evals_last'
        )
    if objective.schedule.ends_in_noise:
        raise InputError('evals.bits_per_dim: config.noise.schedule ends in noise alone: take cosine, linear or karras')
    schedule, mean, std = objective.schedule, np.asarray(data.mean, np.float32), np.asarray(data.std, np.float32)
    last = schedule.level(jnp.ones(()))
    low, high = jnp.log(SHARP), jnp.log(last[1] / last[0])

    def level(t, like):
        return (z.reshape(-1, *[1] * (like.ndim - 1)) for z in schedule.level(t))

    @jax.jit
    def nats(params, batch, key):
        """f32[B, draws] of whole images, and whether a row counts."""
        view = data.augment(key, batch, train=False)
        x = view[objective.field]
        code = jnp.clip(jnp.round((x * std + mean) * (LEVELS - 1)), 0, LEVELS - 1)
        x = jnp.repeat((code / (LEVELS - 1) - mean) / std, draws, 0)
        k1, k2, k3 = jax.random.split(key, 3)
        u = (jax.random.uniform(k1, (len(code), 1)) + jnp.arange(draws) / draws) % 1
        t = schedule.time(jnp.exp(low + (high - low) * u.reshape(-1)))
        added = jax.random.normal(k2, x.shape)
        alpha, sigma = level(t, x)
        noise = objective.apply({'params': params}, alpha * x + sigma * added, t, None, method='denoise')[1]
        lost = (high - low) * jnp.square(noise - added).sum(tuple(range(1, x.ndim)))
        return (lost + end(x, *last) + jnp.repeat(read(code, mean, std, k3), draws)).reshape(-1, draws), batch['valid']

    def evaluate(params: dict) -> dict[str, float]:
        total = variance = rows = 0.0
        for i, batch in enumerate(data.val(batch_size)):
            outs = nats(params, put(batch, batch_size), jax.random.fold_in(jax.random.key(seed), i))
            found, counts = everywhere(outs)
            found = found[counts].astype(np.float64)
            total, rows = total + found.mean(1).sum(), rows + len(found)
            variance += found.var(1, ddof=1).sum() / draws
        size = rows * math.prod(image_shape(objective, data, batch)) * math.log(2)
        return {'eval/bits_per_dim': total / size, 'eval/bits_per_dim_error': math.sqrt(variance) / size}

    return evaluate


def end(x, alpha, sigma):
    """Nats f32[B] by which the last level of x differs from noise of the same variance."""
    total = alpha**2 + sigma**2
    each = (sigma**2 + jnp.square(alpha * x)) / total - 1 + jnp.log(total / sigma**2)
    return each.sum(tuple(range(1, x.ndim))) / 2


def read(code, mean, std, key):
    """Nats f32[B] of the right levels f32[B, H, W, C] among all where sigma / alpha is SHARP; row by row, for every number has 256 of them."""
    values = (jnp.arange(LEVELS)[:, None] / (LEVELS - 1) - mean) / std  # f32[256, C]

    def row(each):
        code, key = each
        clean = (code / (LEVELS - 1) - mean) / std
        away = (clean[..., None, :] - values) / SHARP + jax.random.normal(key, code.shape)[..., None, :]
        logp = jax.nn.log_softmax(-jnp.square(away) / 2, -2)  # f32[H, W, 256, C]
        return -jnp.take_along_axis(logp, code.astype(jnp.int32)[..., None, :], -2).sum()

    return jax.lax.map(row, (code, jax.random.split(key, len(code))))
