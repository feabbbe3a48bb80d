"""What images lose on the way through codes or latents, and how many of the codes are used."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mim_jax.evals.features import everywhere, put, records, spread
from mim_jax.evals.pictures import Column, figure
from mim_jax.evals.reconstruction import IMAGES, display
from mim_jax.objectives.autoencoding import perplexity, usage
from mim_jax.objectives.autoencoding import psnr as decibels


def passed_through(objective, data) -> Callable:
    """`(params, batch) -> (image and what becomes of it f32[B, H, W, C] in [0, 1], its codes, valid bool[B])`, jitted.

    Args:
        objective: objectives.Autoencoding.
        data: with `augment`.
    """

    @jax.jit
    def run(params: dict, batch: dict) -> tuple[Array, ...]:
        batch = data.augment(jax.random.key(0), batch, train=False)
        codes = objective.apply({'params': params}, batch, method='codes')
        found = objective.apply({'params': params}, codes, method='decode')
        return objective.pixels(batch[objective.field]), found, codes, batch['valid']

    return run


def psnr(objective, data, *, batch_size: int = 256) -> Callable:
    """`params -> {'eval/psnr', 'eval/codebook_use', 'eval/code_perplexity'}` of all validation images.

    The first is the mean over images of the peak signal-to-noise ratio in dB, the second the share of codes that any of them
    uses, the third exp of the entropy of how often each is used: at most the size of the codebook. Latents have the first alone.
    """
    run, size = passed_through(objective, data), objective.bottleneck.size

    @jax.jit
    def measure(params: dict, batch: dict) -> tuple[Array, Array, Array]:
        image, found, codes, valid = run(params, batch)
        counts = usage(codes, valid, size) if size else jnp.zeros(0)
        return (decibels(image, found) * valid).sum(), valid.sum(), counts

    def evaluate(params: dict) -> dict[str, float]:
        total, rows, counts = 0.0, 0, np.zeros(size)
        for batch in data.val(batch_size):
            found = measure(params, put(batch, batch_size))
            total, rows, counts = (
                a + np.asarray(b, np.float64) for a, b in zip((total, rows, counts), found, strict=True)
            )
        quality = {'eval/psnr': float(total / max(rows, 1))}
        if not size:
            return quality
        used, spread = float((counts > 0).mean()), float(perplexity(counts))
        return quality | {'eval/codebook_use': used, 'eval/code_perplexity': spread}

    return evaluate


def autoencoded(objective, data, *, rows: int = IMAGES) -> Callable:
    """`params -> {'reconstruction': uint8[H, W, 3]}`: the first `rows` validation images beside what their codes give back."""
    run = passed_through(objective, data)

    def evaluate(params: dict) -> dict[str, np.ndarray]:
        arrays = everywhere(run(params, spread(records(data.val(rows), rows))))
        image, found = (array[:rows] for array in arrays[:2])
        show, blank = display((0.0,), (1.0,)), np.zeros(image.shape[:3], bool)
        quality = f'{float(decibels(image, found).mean()):.1f} dB'
        columns = [Column('input', '', show(image), blank), Column('reconstruction', quality, show(found), blank)]
        return {'reconstruction': figure(columns)}

    return evaluate
