"""Steps against quality of the samplers of masked text: what a left-to-right model of the same data makes of their samples.

    python benchmarks/sampler_quality.py --run=runs/text/python_stdlib/mdlm_0 --judge=runs/text/python_stdlib/autoregressive_0

Both are runs that benchmarks/text.py leaves. For each sampler and number of steps: nats a token of the samples under the judge (their generative
perplexity), bits of their unigrams, and how far their bigrams are from the data's. Low nats alone are no quality: a sampler that is too cold has them too,
and gives itself away by few bits.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mim_jax import build, inputs, warm_start
from mim_jax.autoencoder import saved_config
from mim_jax.evals.generation import make_sampler, statistics

RUN = flags.DEFINE_string('run', None, 'workdir of a masked model', required=True)
JUDGE = flags.DEFINE_string('judge', None, 'workdir of a model with the objective Sequence', required=True)
STEPS = flags.DEFINE_list('steps', ['8', '16', '32', '64', '128'], 'numbers of steps')
ROWS = flags.DEFINE_integer('rows', 128, 'samples of each')
SAMPLERS = {
    'ancestral': dict(name='ancestral'),
    'ancestral, top-p 0.9': dict(name='ancestral', top_p=0.9),
    'remasking, rescale 0.05': dict(name='remasking', rule='rescale', eta=0.05),
    'confidence': dict(name='confidence'),
    'confidence, noise 4.5': dict(name='confidence', noise=4.5),
    'confidence, remask, noise 4.5': dict(name='confidence', noise=4.5, remask=True),
    'blocks of 32, ancestral': dict(name='ancestral', block=32),
}


def opened(workdir: str):
    """(config, objective, parameters) of a run, the average where it keeps one."""
    config = saved_config(Path(workdir))
    return config, build.objective(config), jax.device_put(warm_start.parameters(workdir))


def main(_):
    config, objective, params = opened(RUN.value)
    _, judge, theirs = opened(JUDGE.value)
    data = inputs.Data(config, Path(RUN.value), build.augment(config)).labelled
    batch = next(iter(data.val(ROWS.value, count=ROWS.value)))
    given, whole = batch['ids'], np.ones_like(batch['ids'], bool)
    nats = jax.jit(lambda batch: judge.apply({'params': theirs}, batch, jax.random.key(0), None, method='nats'))

    def measure(ids, segment):
        rows = dict(ids=jnp.asarray(ids), segment=jnp.asarray(segment, jnp.int32), valid=jnp.ones(len(ids), bool))
        found, tokens = nats(rows)
        return float(found.sum() / tokens.sum()), statistics(np.asarray(ids), given, batch['segment'])

    print('| sampler | steps | nats under the judge | bits of unigrams | bigrams apart |\n|---|---|---|---|---|')
    own, stats = measure(given, batch['segment'])
    print(f'| held-out text | | {own:.3f} | {stats["eval/data_unigram_bits"]:.2f} | |', flush=True)
    cases = [(name, spec | dict(steps=int(steps)), steps) for name, spec in SAMPLERS.items() for steps in STEPS.value]
    cases.append(('first hitting', dict(name='first_hitting'), given.shape[1]))
    for name, spec, steps in cases:
        if spec.get('block'):  # steps are those of a block
            spec['steps'] = math.ceil(spec['steps'] * spec['block'] / given.shape[1])
        ids = make_sampler(objective, spec)(params, jax.random.key(0), jnp.zeros_like(given), jnp.asarray(whole))
        own, stats = measure(ids, whole)
        print(f'| {name} | {steps} | {own:.3f} | {stats["eval/sample_unigram_bits"]:.2f} | {stats["eval/bigram_distance"]:.3f} |', flush=True)  # fmt: skip


if __name__ == '__main__':
    app.run(main)
