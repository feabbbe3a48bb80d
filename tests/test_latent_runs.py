"""Runs on latents, from images to a sheet of decoded samples."""

import importlib
import json

import numpy as np
import pytest
from PIL import Image

from mim_jax import build, inputs, train
from mim_jax.errors import InputError
from mim_jax.tools import tokenize
from tests.runs import TINY, compiled_once  # noqa: F401 (a fixture)


def config(name, variant, path, **changes):
    made = importlib.import_module(f'configs.{name}').get_config(variant)
    made.data.update(path=str(path), batch_size=8)
    made.update(total_steps=4, log_every=2, eval_every=0, checkpoint_every=4, tensorboard=False)
    made.mesh.data, made.schedule.warmup_steps = 1, 1
    made.update_from_flattened_dict(changes)
    return made


def model(name, path, **changes):
    made = config(name, 'cifar10_latents', path, evals_last=(), **changes)
    made.encoder.update(TINY)
    if 'width' in made.predictor:
        made.predictor.update(TINY)
    made.evals.sampling.update(rows=10)
    made.evals.sampling.sampler.steps = 2
    return made


@pytest.fixture(scope='module')
def latents(tmp_path_factory):
    """Latents of the digits."""
    folder = tmp_path_factory.mktemp('kl')
    made = config('kl', 'tiny', 'builtin:digits')
    for part in (made.encoder, made.decoder):
        part.update(widths=(8,), depth=0)
    assert train.run(made, folder / 'run', 'train', {}) == 0
    assert tokenize.main(['builtin:digits', str(folder / 'latents'), f'--run={folder / "run"}']) == 0
    return folder / 'latents'


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ('dit', 'maskdit')]


@pytest.mark.parametrize('name', ['umd', *SLOW])
def test_digits_end_in_a_sheet_of_decoded_latents(latents, tmp_path, name):
    evals = ('sampling', 'knn') if name == 'umd' else ('sampling',)
    assert train.run(model(name, latents, evals_often=evals), tmp_path / 'run', 'train', {}) == 0
    sheet = np.asarray(Image.open(tmp_path / 'run/samples/4.png'))
    assert sheet.ndim == 3 and len(np.unique(sheet)) > 10
    saved, told = (
        json.loads((path).read_text()) for path in (tmp_path / 'run/config.json', latents / 'train/index.json')
    )
    data, told = saved['data'], told['tokens']
    assert (data['canvas'], data['channels']) == ([4, 4], 4) and told['shape'] == [4, 4, 4]
    assert (data['mean'], data['std']) == (told['mean'], told['std'])


@pytest.mark.parametrize('name', ['dit', 'umd', 'maskdit'])
@pytest.mark.parametrize('variant', ['cifar10_latents', 'xl2'])
def test_no_schedule_of_latents_ends_where_a_wrong_answer_is_blown_up(name, variant):
    """Nothing clips latents: the clean value is (x - sigma noise) / alpha."""
    made = importlib.import_module(f'configs.{name}').get_config(variant)
    alpha, _ = build.part('noise', made.noise.schedule, bind=False).level(np.ones(1))
    assert not made.evals.sampling.sampler.clip and alpha[0] > 5e-3


def test_a_share_of_the_latents_can_be_held_out(latents, tmp_path):
    made = model('dit', latents / 'train', **{'data.holdout': 0.1})
    inputs.settle(made, tmp_path)
    data = inputs.Data(made, tmp_path, None)
    assert data.val_source is not None and data.labelled.decode(np.zeros((2, 4, 4, 4), np.float32)).shape == (
        2,
        8,
        8,
        1,
    )
    assert next(data.train(0))[0]['image'].shape == (8, 4, 4, 4)


@pytest.mark.parametrize(('change', 'why'), [
    ({'data.path': 'builtin:digits'}, 'holds images, but the config is one of latents; python -m mim_jax.tools.tokenize DATA OUT --run=RUN'),
    ({'data.path': 'builtin:digit_levels'}, 'holds tokens, but the config is one of latents'),
    ({'evals.sampling.sampler.clip': True}, 'clip=True keeps values within those of pixels'),
], ids=lambda x: str(x)[:40])  # fmt: skip
def test_what_cannot_be_is_one_sentence(latents, tmp_path, change, why):
    with pytest.raises(InputError, match=why):
        train.run(model('dit', latents, **change), tmp_path / 'run', 'train', {})


def test_other_latents_than_those_of_the_checkpoint_and_a_lost_autoencoder_are_one_sentence(latents, tmp_path):
    made = model('dit', latents, evals_often=())
    assert train.run(made, tmp_path / 'run', 'train', {}) == 0
    for split in ('train', 'val'):
        (tmp_path / 'other' / split).mkdir(parents=True)
        for file in (latents / split).iterdir():
            (tmp_path / 'other' / split / file.name).write_bytes(file.read_bytes())
        index = json.loads((latents / split / 'index.json').read_text())
        index['tokens'] |= dict(mean=[9.0] * 4, autoencoder=str(tmp_path / 'gone'))
        (tmp_path / 'other' / split / 'index.json').write_text(json.dumps(index))
    again = model('dit', tmp_path / 'other', evals_often=(), total_steps=5)
    with pytest.raises(InputError, match=r'data.mean=\[9.0.*but the checkpoints in .*run were trained with \['):
        train.run(again, tmp_path / 'run', 'train', {})
    with pytest.raises(InputError, match=r'the autoencoder that made .*other: .*gone has no config.json'):
        train.run(again, tmp_path / 'fresh', 'train', {})
