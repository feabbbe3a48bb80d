"""Runs on pixels of methods that draw by taking noise away, from digits to sheets, probes and distances."""

import importlib

import numpy as np
import pytest
from PIL import Image

from mim_jax import train
from tests.runs import TINY, compiled_once, lines  # noqa: F401 (a fixture)

MEASURED = dict(
    umd={'eval/class_agreement', 'eval/frechet', 'eval/precision', 'eval/recall', 'eval/inception_score'},
    ddae={'eval/layer_noise_top1', 'eval/layer_noise_layer', 'eval/layer_noise_time', 'eval/bits_per_dim'},
    mar={'eval/class_agreement', 'eval/linear_top1'},
)


def config(name):
    made = importlib.import_module(f'configs.{name}').get_config('tiny')
    for part in [made[slot] for slot in ('encoder', 'predictor') if 'width' in made[slot]]:
        part.update(TINY)
    made.data.batch_size, made.mesh.data, made.schedule.warmup_steps = 8, 1, 1
    made.update(
        total_steps=2, log_every=1, eval_every=0, checkpoint_every=2, tensorboard=False, evals_often=('sampling',)
    )
    made.evals.sampling.rows = 10
    made.evals.fidelity.update(samples=20, batch_size=10, steps=2, judge=dict(name='ViT', class_token=False, **TINY))
    for each in (made.evals.sampling.sampler, made.evals.fidelity.sampler):
        each.steps = 2
        if 'denoising' in each:
            each.denoising.steps = 2
    return made


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ('ddae', 'mar')]


@pytest.mark.parametrize('name', ['umd', *SLOW])
def test_digits_end_in_a_sheet_and_in_numbers(tmp_path, name):
    made = config(name)
    made.evals_last = dict(
        umd=('fidelity',), ddae=('layer_noise_probe', 'bits_per_dim'), mar=('fidelity', 'linear_probe')
    )[name]
    if name == 'ddae':
        made.evals.layer_noise_probe.update(times=(0.0, 0.5), epochs=1)
        made.evals.bits_per_dim.draws = 2
    if name == 'mar':
        made.evals.linear_probe.epochs = 1
    assert train.run(made, tmp_path / 'run', 'train', {}) == 0
    found = {}
    for line in lines(tmp_path / 'run/metrics.jsonl'):
        found |= line
    assert found.keys() >= MEASURED[name] and all(np.isfinite(found[key]) for key in MEASURED[name])
    pictures = ['samples/2.png'] + ['layer_noise_probes/2.png'] * (name == 'ddae')
    for picture in pictures:
        assert len(np.unique(np.asarray(Image.open(tmp_path / 'run' / picture)))) > 10
