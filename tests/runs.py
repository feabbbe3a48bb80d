"""Runs that are as small as they can be, and what they leave behind."""

import contextlib
import importlib
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from mim_jax import train
from mim_jax.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
RECORDS = 23
TINY = {'width': 16, 'depth': 1, 'heads': 2}
RNG = np.random.default_rng(0)


@pytest.fixture(scope='module', autouse=True)
def compiled_once(tmp_path_factory):
    """What one test compiles, the others read from disk."""
    cache = str(tmp_path_factory.mktemp('xla'))
    values = dict(jax_compilation_cache_dir=cache, jax_persistent_cache_min_compile_time_secs=0.0)
    before = {name: jax.config.values[name] for name in values}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_COMPILATION_CACHE_DIR', cache)
        patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
        for settings in (values, before):
            compilation_cache.reset_cache()
            for name, value in settings.items():
                jax.config.update(name, value)
            if settings is values:
                yield


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    """Small pictures with labels, as integers and as floats."""
    folder, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    images = rng.integers(0, 256, (RECORDS, 4, 4, 1), np.uint8)
    np.savez(folder / 'train.npz', images=images, labels=np.arange(RECORDS) % 3)
    np.savez(folder / 'float.npz', images=images / np.float32(255), labels=np.arange(RECORDS) % 3)
    return folder


@pytest.fixture
def run(tmp_path, records):
    """`run(workdir='run', mode='train', **changes of the config) -> exit status`."""

    def go(workdir='run', mode='train', **changes):
        config = importlib.import_module('configs.quickstart').get_config()
        config.encoder.update(TINY)
        config.terms.pixels.predictor.update(TINY)
        config.data.update(
            path=str(records / 'train.npz'),
            val_path=str(records / 'train.npz'),
            batch_size=8,
            image_size=(4, 4),
            canvas=(4, 4),
        )
        config.update(
            total_steps=6,
            log_every=2,
            eval_every=0,
            checkpoint_every=100,
            dtype='float32',
            tensorboard=False,
            evals_often=(),
            evals_last=(),
        )
        config.mesh.data = 1
        config.schedule.warmup_steps = 2
        config.update_from_flattened_dict(changes)
        return train.run(config, tmp_path / workdir, mode, {})

    return go


def picture(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


@pytest.fixture
def hostile(tmp_path):
    """Four files that cannot be used, four that have to be converted, four good ones."""
    root = tmp_path / 'hostile'
    root.mkdir()
    for i in range(4):
        Image.fromarray(picture(12, 16, 3)).save(root / f'good{i}.jpg')
    Image.fromarray(picture(64, 64, 3)).save(root / 'truncated.jpg', quality=95)
    (root / 'truncated.jpg').write_bytes((root / 'truncated.jpg').read_bytes()[:2000])
    (root / 'zero.jpg').touch()
    (root / 'text.jpg').write_text('this is not a picture')
    Image.fromarray(picture(1, 1, 3)).save(root / 'one.png')
    Image.fromarray(picture(12, 16)).save(root / 'gray.png')
    Image.fromarray(picture(12, 16, 4), 'CMYK').save(root / 'cmyk.jpg')
    Image.fromarray(picture(12, 16).astype(np.uint16) * 257).save(root / 'deep.png')
    frames = [Image.fromarray(picture(12, 16, 3)) for _ in range(2)]
    frames[0].save(root / 'moving.webp', save_all=True, append_images=frames[1:], lossless=True)
    return root


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(workdir):
    """Steps of the training lines."""
    return [line['step'] for line in lines(workdir / 'metrics.jsonl') if 'train/loss' in line]


def events(workdir, kind):
    return [line for line in lines(workdir / 'events.jsonl') if line['event'] == kind]


def final(workdir, step=None):
    """(parameters and moments by path, position) of a checkpoint."""
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as saved:
        tree, position = saved.read(step)
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}, position


def assert_same_state(a, b):
    (a, there), (b, here) = a, b
    assert a.keys() == b.keys() and there == here
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def signal_at(patch, place, name, count, kind=signal.SIGTERM):
    """Sends this process a signal at the count-th call of place.name."""
    real, calls = getattr(place, name), []

    def counted(*args, **kwargs):
        calls.append(0)
        if len(calls) == count:
            os.kill(os.getpid(), kind)
        return real(*args, **kwargs)

    patch.setattr(place, name, counted)
