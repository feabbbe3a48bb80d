"""A program that runs every evaluator once, at tiny size, on as many hosts as it is started on.

python -m tests.all_evaluators WORKDIR [CASE ...]
"""

import importlib
import sys
from pathlib import Path

from mim_jax import hosts
from tests.many import TINY

SMALL = dict(total_steps=2, log_every=1, eval_every=0, checkpoint_every=2, tensorboard=False, dtype='float32')


def config(name, variant=None, **changes):
    made = importlib.import_module(f'configs.{name}').get_config(*[variant] * bool(variant))
    made.unlock()
    for slot in ('encoder', 'predictor'):
        if slot in made and 'heads' in made[slot]:
            made[slot].update(TINY)
    made.update(SMALL)
    made.data.batch_size, made.schedule.warmup_steps = 8, 1
    made.update_from_flattened_dict(changes)
    return made


def features():
    made = config('quickstart')
    made.terms.pixels.predictor.update(TINY)
    made.evals.linear_probe.epochs, made.evals.attentive_probe.epochs = 2, 1
    made.evals.spilled = dict(name='attentive_probe', epochs=1, cache_gb=0.0)
    made.evals.finetune.update(steps=2, batch_size=16)
    made.evals_last = ('reconstruction', 'knn', 'linear_probe', 'attentive_probe', 'few_shot', 'finetune')
    return made


def spilled():
    made = features()
    made.evals.attentive_probe.cache_gb = 0.0
    made.evals_last = ('attentive_probe',)
    return made


def text():
    made = config('mdlm', 'tiny', **{'data.holdout': 0.02, 'evals.generation.rows': 4})
    made.data.reader.length, made.evals.generation.sampler.steps = 16, 2
    made.evals_last = ('likelihood', 'pseudo_likelihood', 'generation')
    return made


def codes():
    made = config('maskgit', 'tiny', **{'data.path': 'builtin:digit_levels', 'evals.generation.rows': 10})
    made.evals.fidelity.update(samples=20, batch_size=10, steps=2)
    made.evals.fidelity.sampler.steps = made.evals.generation.sampler.steps = 2
    made.evals_last = ('likelihood', 'generation', 'fidelity')
    return made


def noise(name='umd'):
    made = config(name, 'tiny')
    made.evals.sampling.update(rows=10, hole=0.5)
    made.evals.fidelity.update(samples=20, batch_size=10, steps=2, judge=dict(name='ViT', class_token=False, **TINY))
    for each in (made.evals.sampling.sampler, made.evals.fidelity.sampler):
        each.steps = 2
        if 'denoising' in each:
            each.denoising.steps = 2
    made.evals_last = ('sampling', 'fidelity')
    return made


def layers():
    made = noise('ddae')
    made.evals.layer_noise_probe.update(times=(0.0, 0.5), epochs=1)
    made.evals.bits_per_dim.draws = 2
    made.evals_last = ('layer_noise_probe', 'bits_per_dim')
    return made


def inception():
    made = noise('umd')
    made.evals.fid = dict(name='fid', sampler=made.evals.sampling.sampler, samples=20, batch_size=10, network=str(Path(sys.argv[1]).parent / 'network.pt'))  # fmt: skip
    made.evals_last = ('fid',)
    return made


def autoencoder():
    made = config('fsq', 'tiny')
    for part in (made.encoder, made.decoder):
        part.update(widths=(8,), depth=0)
    made.evals_last = ('psnr', 'autoencoded')
    return made


def in_order():
    return noise('mar')


CASES = dict(features=features, spilled=spilled, text=text, codes=codes, noise=noise, layers=layers, autoencoder=autoencoder, in_order=in_order, inception=inception)  # fmt: skip


def main(workdir, *names):
    chosen = {name: CASES[name]() for name in names or CASES}
    hosts.start(chosen[next(iter(chosen))], workdir)
    from mim_jax import train

    for name, made in chosen.items():
        made.evals_often = ()
        print('case', name, file=sys.stderr, flush=True)
        assert train.run(made, Path(workdir) / name, 'train', {}) == 0
    return hosts.finish(0)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
