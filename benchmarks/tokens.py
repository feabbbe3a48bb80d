"""Masked diffusion of tokens: training step beside PyTorch, and samplers beside the textbook's loop.

    python benchmarks/tokens.py                          # training, 32 x 128 and 8 x 512 bytes
    python benchmarks/tokens.py --samplers               # tokens a second of each sampler

Transformer 256 x 6, f32, rotary positions, AdamW. Training takes turns as in throughput.py and compares the fastest steps. The textbook's
ancestral sampler is a Python loop over steps around the same jitted network, which draws from q(s | t) with 64-bit noise on the host's side of it.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from turns import compare, same_batch, stepping, trainer

from configs import mdlm
from mim_jax import large_pages, sharding, train
from mim_jax.evals.generation import make_sampler

CASES = flags.DEFINE_list('cases', ['32x128', '8x512'], 'rows x tokens')
TURNS = flags.DEFINE_integer('turns', 4, 'turns of each')
STEPS = flags.DEFINE_integer('steps', 5, 'steps of a turn')
SAMPLERS = flags.DEFINE_bool('samplers', False, 'measure the samplers')

CORES = len(os.sched_getaffinity(0))
WIDTH, DEPTH, HEADS, VOCAB = 256, 6, 4, 256


def configuration(rows: int, length: int):
    config = mdlm.get_config('tiny')
    config.encoder.update(width=WIDTH, depth=DEPTH, heads=HEADS)
    config.data.update(batch_size=rows)
    config.data.reader.update(length=length, documents='cut')
    config.optimizer.clip, config.ema = 0.0, 0.0
    return config


def ours(rows: int, length: int):
    """() -> None, one training step."""
    config = configuration(rows, length)
    return stepping(*trainer(config), same_batch(config, 'ids', VOCAB))


def theirs(rows: int, length: int):
    """() -> None, one training step of the same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch_models import Block

    torch.manual_seed(0)
    torch.set_num_threads(CORES)
    omega = 10000.0 ** -(torch.arange(WIDTH // HEADS // 2) / (WIDTH // HEADS // 2))
    angle = torch.arange(length)[:, None] * omega
    sin, cos = angle.sin(), angle.cos()

    def rotate(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    model = nn.Sequential(
        nn.Embedding(VOCAB + 1, WIDTH),
        *(Block(WIDTH, HEADS, rotate) for _ in range(DEPTH)),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, VOCAB),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    ids = torch.randint(0, VOCAB, (rows, length))

    def run():
        t = (torch.rand(1) + torch.arange(rows) / rows) % 1 * (1 - 1e-3) + 1e-3
        hidden = torch.rand(rows, length) < t[:, None]
        optimizer.zero_grad(set_to_none=True)
        logits = model(torch.where(hidden, VOCAB, ids))
        cost = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction='none').view(rows, length)
        ((cost * hidden / t[:, None]).sum() / ids.numel()).backward()
        optimizer.step()

    return run


def textbook(answer, ids, steps: int):
    """The ancestral sampler as papers print it."""
    hidden = np.ones(ids.shape, bool)
    rng = np.random.default_rng(0)
    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        logits = np.asarray(answer(ids, hidden), np.float64)
        drawn = (logits - np.log(-np.log(rng.random(logits.shape)))).argmax(-1)
        now = hidden & (rng.random(ids.shape) >= s / t)
        ids, hidden = np.where(now, drawn, ids), hidden & ~now
    return ids


def compare_samplers(rows: int, length: int) -> None:
    """Prints tokens a second of each sampler, and its ratio to the textbook's with the same steps."""
    objective, _, abstract = train.parts(configuration(rows, length), sharding.make_mesh(data=1))
    params = jax.tree.map(
        lambda x: 0.02 * np.random.default_rng(0).standard_normal(x.shape, np.float32), abstract.params
    )
    params = jax.device_put(params)
    answer = jax.jit(lambda ids, hidden: objective.apply({'params': params}, ids, hidden, method='answer'))
    blank, hidden = np.zeros((rows, length), np.int32), np.ones((rows, length), bool)

    def rate(run, *args):
        np.asarray(run(*args))  # waits, or the clock would run while the first call does
        start = time.perf_counter()
        np.asarray(run(*args))
        return rows * length / (time.perf_counter() - start)

    for steps in (32, 128, 1024):
        book = rate(partial(textbook, answer, steps=steps), blank)
        print(f'| {rows} x {length} | textbook, {steps} steps | {book:.0f} | 1.00 |', flush=True)
        specs = [
            dict(name='ancestral', cached=False),
            dict(name='ancestral'),
            dict(name='remasking'),
            dict(name='confidence'),
        ]
        for spec in specs if steps < 1024 else [dict(name='ancestral'), dict(name='first_hitting')]:
            sample = make_sampler(objective, spec | (dict(steps=steps) if spec['name'] != 'first_hitting' else {}))
            found = rate(sample, params, jax.random.key(0), jnp.asarray(blank), jnp.asarray(hidden))
            name = spec['name'] + (', every step' if spec.get('cached') is False else '')
            print(f'| {rows} x {length} | {name}, {steps} steps | {found:.0f} | {found / book:.2f} |', flush=True)


def main(_):
    cases = [tuple(map(int, case.split('x'))) for case in CASES.value]
    if SAMPLERS.value:
        print('| rows x tokens | sampler | tokens/s | ratio |\n|---|---|---|---|')
        for case in cases:
            compare_samplers(*case)
        return
    print('| rows x tokens | PyTorch, ms | mim_jax, ms | ratio |\n|---|---|---|---|')
    for rows, length in cases:
        compare(f'{rows} x {length}', theirs(rows, length), ours(rows, length), TURNS.value, STEPS.value)


if __name__ == '__main__':
    large_pages.ensure()
    app.run(main)
