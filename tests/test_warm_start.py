"""The stages of a recipe: the encoder of one run starts the next."""

import importlib

import numpy as np
import pytest

from mim_jax import train
from mim_jax.errors import InputError
from tests import checks, runs

compiled_once = runs.compiled_once


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """`stage(config name, workdir, **changes) -> exit status` of two steps on digits that move."""
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')

    def go(name, workdir, **changes):
        config = importlib.import_module(f'configs.{name}').get_config('tiny')
        shape = checks.tiny(name)
        config.update(total_steps=2, eval_every=0, checkpoint_every=2, tensorboard=False, evals_often=(), evals_last=())
        for slot in ('encoder', 'tokenizer'):
            config[slot] = shape[slot]
        if 'terms' in config:
            config.terms = shape.terms
        config.data.update(batch_size=4, image_size=shape.data.image_size, canvas=(64, 64))
        config.data.reader.update(frames=shape.data.reader.frames, clips=2)
        config.mesh.data = 1
        config.update_from_flattened_dict(changes)
        return train.run(config, tmp_path / workdir, 'train', {})

    return go


def test_three_stages_hand_the_encoder_on(stage, tmp_path):
    assert stage('videomae_v2', 'one') == 0
    changes = dict(init=str(tmp_path / 'one'), total_steps=1)
    assert stage('videomae_v2_finetune', 'two', **changes, **{'schedule.lr': 0.0}) == 0
    (first, _), (second, _) = (runs.final(tmp_path / name) for name in ('one', 'two'))
    there = {
        path.partition("['encoder']")[2]: x for path, x in first.items() if path.startswith("['params']['encoder']")
    }
    here = {path.partition("['encoder']")[2]: x for path, x in second.items() if path.startswith("['params']['classifier']['encoder']")}  # fmt: skip
    assert here and here.keys() <= there.keys()
    for path, x in here.items():  # a learning rate of 0 leaves what it was given
        np.testing.assert_array_equal(x, there[path], err_msg=path)
    assert stage('videomae_v2_finetune', 'three', init=str(tmp_path / 'two')) == 0
    assert {'train/top1', 'train/loss'} <= runs.lines(tmp_path / 'three' / 'metrics.jsonl')[-1].keys()


def test_a_run_without_checkpoint_is_refused_before_any_data_is_read(stage, tmp_path):
    with pytest.raises(InputError, match=r'config.init=.*nowhere has no checkpoints'):
        stage('videomae_v2_finetune', 'a', init=str(tmp_path / 'nowhere'))


def test_another_encoder_is_named(stage, tmp_path):
    assert stage('videomae_v2', 'one') == 0
    with pytest.raises(InputError, match=r'classifier/encoder/.* is .* there and .* here'):
        stage('videomae_v2_finetune', 'two', init=str(tmp_path / 'one'), **{'encoder.width': 24})


def test_a_whole_network_goes_on_without_masks(tmp_path, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    from configs import maskdit

    def go(variant, workdir, **changes):
        config = maskdit.get_config(variant)
        config.encoder.update(width=16, depth=1, heads=2)
        config.predictor.update(width=16, depth=1, heads=2)
        config.update(total_steps=2, eval_every=0, checkpoint_every=2, tensorboard=False, evals_often=(), evals_last=())
        config.data.batch_size, config.mesh.data = 4, 1
        config.update_from_flattened_dict(changes)
        return train.run(config, tmp_path / workdir, 'train', {})

    assert go('tiny', 'masked') == 0
    assert go('tiny_unmasked', 'whole', init=str(tmp_path / 'masked'), **{'schedule.lr': 0.0}) == 0
    (before, _), (after, _) = (runs.final(tmp_path / name) for name in ('masked', 'whole'))
    kept = [path.removeprefix("['params']") for path in after if path.startswith("['params']")]
    assert len(kept) > 20 and "['predictor']['mask_token']" not in kept
    for path in kept:  # a learning rate of 0 leaves what it was given
        np.testing.assert_array_equal(after["['params']" + path], before["['ema']" + path], err_msg=path)
    with pytest.raises(InputError, match=r'init_part=half: it has to be one of encoder, all'):
        go('tiny_unmasked', 'half', init=str(tmp_path / 'masked'), init_part='half')
