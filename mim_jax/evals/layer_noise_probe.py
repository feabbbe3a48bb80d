"""Linear probes on every block of a denoiser at every level of noise."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import InputError
from mim_jax.evals.confusion import heatmap
from mim_jax.evals.features import Split, collect, put
from mim_jax.evals.linear_probe import probe
from mim_jax.models.blocks import Block


def layer_noise_probe(
    objective,
    data,
    *,
    times: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
    rows: int = 20_000,
    lrs: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    weight_decays: Sequence[float] = (0.0, 1e-2),
    epochs: int = 30,
    holdout: float = 0.1,
    batch_size: int = 256,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/layer_noise_top1', ...}`: a linear probe on the mean token after each block of a noised image (DDAE, arXiv 2303.09769).

    'eval/layer_noise_layer' (from 1) and 'eval/layer_noise_time' say which block and time are best on training rows the probes have not
    seen, 'eval/layer_noise_top1' is their accuracy on the validation records; 'layer_noise_probe' is a picture of that of all.

    Args:
        objective: `Denoise`.
        times: of the noise, in [0, 1].
        rows: training records used, drawn by `seed`; all validation records are.
        lrs, weight_decays, epochs, holdout: see `linear_probe`.
        batch_size: rows encoded at once, by all hosts together.
        seed: of rows, noise and probes.

    Raises:
        InputError: an encoder whose layers are scanned, or a time out of range.
    """
    if objective.encoder.scan:
        raise InputError('evals.layer_noise_probe reads every block: set config.encoder.scan=False')
    if not all(0 <= t <= 1 for t in times):
        raise InputError(f'evals.layer_noise_probe.times={tuple(times)}: each has to be between 0 and 1')
    grid = list(itertools.product(lrs, weight_decays))
    how = dict(grid=grid, holdout=holdout, num_classes=data.num_classes, epochs=epochs, batch_size=1024, seed=seed)
    split = partial(pooled, jax.jit(partial(pooled_blocks, objective, data)), seed, batch_size)
    steps = max(1, rows // batch_size) if rows < data.num_train else None

    def at(params, t) -> list[tuple[float, float]]:
        """(accuracy on rows held out, on validation) of each block."""
        train = data.train(batch_size, seed=seed, shuffle=steps is not None, steps=steps)
        splits = split(params, train, t, 'training'), split(params, data.val(batch_size), t, 'validation')
        found = []
        for layer in range(splits[0].features.shape[1]):
            top1, table = probe(*(Split(s.features[:, layer], s.labels) for s in splits), **how)
            found.append((table[0]['top1'], top1))
        return found

    def evaluate(params: dict) -> dict:
        chosen, top1 = np.moveaxis([at(params, t) for t in times], -1, 0).swapaxes(1, 2)  # f[L, T] each
        layer, time = np.unravel_index(chosen.argmax(), chosen.shape)
        return {
            'eval/layer_noise_top1': float(top1[layer, time]),
            'eval/layer_noise_layer': float(layer + 1),
            'eval/layer_noise_time': float(times[time]),
            'layer_noise_probe': picture(top1, times, top1[layer, time]),
        }

    return evaluate


def pooled(
    blocks: Callable, seed: int, batch_size: int, params: dict, batches: Iterable[dict], t: float, name: str
) -> Split:
    """What `blocks` gives of all batches at time t, each with noise of its own."""
    keys = map(partial(jax.random.fold_in, jax.random.key(seed)), itertools.count())
    pairs = zip(batches, keys, strict=False)
    return collect((blocks(params, put(batch, batch_size), jnp.float32(t), key) for batch, key in pairs), name)


def pooled_blocks(objective, data, params, batch, t, key):
    """The mean token f32[B, L, D] after each block at time t, label i32[B], and whether a row counts bool[B]."""
    view = data.augment(jax.random.key(0), batch, train=False)
    run = partial(objective.apply, {'params': params}, view, t=t, key=key, method='encode', mutable='intermediates')
    _, seen = run(capture_intermediates=lambda module, name: isinstance(module, Block) and name == '__call__')
    outs = seen['intermediates']['encoder']['blocks']
    tokens = jnp.stack([outs[f'block_{i}']['__call__'][0] for i in range(objective.encoder.shape[1])], 1)
    pooled = tokens[:, :, objective.encoder.num_prefix :].astype(jnp.float32).mean(2)
    return pooled, batch['label'], batch['valid'] & (batch['label'] >= 0)


def picture(top1: np.ndarray, times: Sequence[float], best: float) -> np.ndarray:
    """uint8[H, W, 3] of accuracies f[L, T]."""
    title = f'linear top-1 on validation; rows: block, columns: time of the noise; best {best:.1%}'
    rows, columns = [str(i + 1) for i in range(len(top1))], [f'{t:g}' for t in times]
    text = np.array([[f'{100 * x:.1f}' for x in line] for line in top1])
    return heatmap((top1 - top1.min()) / max(np.ptp(top1), 1e-6), text, rows, columns, title)
