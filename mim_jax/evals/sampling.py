"""What a model of noised images draws."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from mim_jax import build, samplers
from mim_jax.errors import InputError
from mim_jax.evals.features import put
from mim_jax.evals.pictures import sheet
from mim_jax.evals.reconstruction import display


def make_image_sampler(objective, data, spec: Mapping) -> Callable:
    """`(params, key, shape, label i32[B] | None) -> f32[B, H, W, C]` normalised as the data, jitted, by what a config says.

    Args:
        objective: has `denoise(x, t, label) -> (clean, noise)`.
        data: LabelledData.
        spec: `name` of a sampler of `samplers.denoising` and its options; besides, `steps` and `grid` of times ('even', 'rooted'),
            `guidance` and its `interval` of times, see `samplers.guided`, and `clip`, whether clean values are kept within those of pixels.

    Raises:
        InputError: unknown sampler, grid or option.
    """
    options = dict(spec)
    steps, grid, guidance = options.pop('steps'), options.pop('grid', 'even'), options.pop('guidance', 1.0)
    interval, clip = tuple(options.pop('interval', (0.0, 1.0))), options.pop('clip', False)
    if clip and data.decode:
        raise InputError('sampler: clip=True keeps values within those of pixels, but the data are latents: set clip=False')
    schedule = objective.schedule
    times = build.part(
        'noise', dict(name=grid), where='evals, sampler, grid', bind=False, schedule=schedule, steps=steps
    )
    sampler = build.part('samplers', options, where='evals, sampler', schedule=schedule, times=times)
    low, high = ((x - np.asarray(data.mean)) / np.asarray(data.std) for x in (0.0, 1.0))

    def sample(params: dict, key: Array, shape: tuple[int, ...], label: Array | None) -> Array:
        def told(label):
            def denoise(x, t):
                clean, noise = objective.apply({'params': params}, x, t, label, method='denoise')
                if not clip:
                    return clean, noise
                clean = jnp.clip(clean, low, high)
                alpha, sigma = (z.reshape(-1, *[1] * (x.ndim - 1)) for z in schedule.level(t))
                return clean, (x - alpha * clean) / jnp.maximum(sigma, 1e-6)

            return denoise

        network = told(label) if guidance == 1 else samplers.guided(told(label), told(None), guidance, interval)
        start, walk = jax.random.split(key)
        return sampler(walk, network, jax.random.normal(start, shape))

    return jax.jit(sample, static_argnums=2)


def sampling(objective, data, *, sampler: Mapping, rows: int = 80, seed: int = 0) -> Callable:
    """`params -> {'sample': uint8[H, W, 3]}`: images drawn by the model, a column for each class where it knows classes; latents are decoded.

    Args:
        sampler: see `make_image_sampler`.
        rows: images.
        seed: of them.
    """
    sample, classes = make_image_sampler(objective, data, sampler), objective.num_classes
    show, names = data.decode or display(data.mean, data.std), data.class_names or [str(i) for i in range(classes)]

    def evaluate(params: dict) -> dict:
        shape = (rows, *data.image_size, len(data.mean))
        label = put(dict(label=np.arange(rows, dtype=np.int32) % classes), rows)['label'] if classes else None
        drawn = sample(params, jax.random.key(seed), shape, label)
        return dict(
            sample=sheet(show(np.asarray(multihost_utils.process_allgather(drawn, tiled=True))), names[:classes])
        )

    return evaluate
