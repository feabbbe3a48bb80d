"""The command line: what it takes, what it says where it is wrong, and the exit status."""

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict

from mim_jax import main
from mim_jax.errors import InputError, RunError

ROOT = Path(__file__).parents[1]
QUICK = '--config=configs/quickstart.py'


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`command(*args, run=what train.run does) -> (status, stderr, arguments of train.run)`, in this process, without JAX."""
    monkeypatch.chdir(ROOT)
    called = []

    def go(*args, run=lambda *args: 0, workdir=True):
        called.clear()
        fake = types.SimpleNamespace(run=lambda *args: (called.extend(args), run(*args))[1])
        monkeypatch.setitem(sys.modules, 'mim_jax.train', fake)
        monkeypatch.setattr('mim_jax.train', fake, raising=False)
        argv = (
            ['mim_jax', *args]
            if not workdir or any(arg.startswith('--workdir') for arg in args)
            else ['mim_jax', f'--workdir={tmp_path}', *args]
        )
        monkeypatch.setattr(sys, 'argv', argv)
        forget()
        status = main.main(argv)
        return status, capsys.readouterr().err, called

    def forget():
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith('config.')]:
            delattr(flags.FLAGS, name)
        for name in ('config', 'workdir', 'mode', 'traceback'):
            flags.FLAGS[name].unparse()

    yield go
    forget()


def test_a_config_with_changes_and_their_origin(command, tmp_path):
    status, err, (config, workdir, mode, origin) = command(
        QUICK, '--config.total_steps=7', '--config.data.mean=0.1', '--config.total_steps=8'
    )
    assert (status, err, workdir, mode) == (0, '', str(tmp_path), 'train')
    assert config.total_steps == 8 and config.data.mean == (0.1,) and config.seed == 0
    assert origin == {'config': 'configs/quickstart.py', 'total_steps': 'command line', 'data.mean': 'command line'}


def test_a_variant_of_a_config(command):
    _, _, (config, *_, origin) = command('--config=configs/mae.py:vit_b32')
    assert (
        config.encoder.size == 'b'
        and config.tokenizer.patch == (32, 32)
        and origin == {'config': 'configs/mae.py:vit_b32'}
    )


def test_eval_takes_the_config_of_the_run(command, tmp_path):
    record = dict(seed=3, data=dict(path='x'), origin={'config': 'configs/a.py'}, environment=dict(python='3'))
    (tmp_path / 'config.json').write_text(json.dumps(record))
    status, _, (config, _, mode, origin) = command('--mode=eval')
    assert (status, mode, origin) == (0, 'eval', {'config': 'configs/a.py'})
    assert isinstance(config, ConfigDict) and config.to_dict() == dict(seed=3, data=dict(path='x'))


@pytest.mark.parametrize(
    ('config', 'lives'),
    [('configs/videomae.py', 'runs/videomae'), ('configs/mae.py:vit_b32', 'runs/mae_vit_b32')],
)
def test_without_workdir_the_run_is_named_after_its_config(command, config, lives):
    status, err, (_, workdir, *_) = command(f'--config={config}', workdir=False)
    assert (status, err, workdir) == (0, f'no --workdir: the run lives in {lives}\n', lives)


URL = 'is a URL, and has to be a path: mount the bucket and give the path of the mount, as docs/launch.md says'


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['--config.encodr.width=3'], "--config.encodr.width=3: the config has no key 'encodr'. Did you mean 'encoder'?"),
        (['--config.encoder.widht=3'], "--config.encoder.widht=3: the config has no key 'widht'. Did you mean 'width'?"),
        (['--config.encoder.layer_scale=0.1'], "--config.encoder.layer_scale=0.1: the config has no key 'layer_scale'. An option that the config file leaves out has to be written there first."),
        (['--config.total_steps=many'], '--config.total_steps=many: it has to be a whole number'),
        (['--config.schedule.lr=fast'], '--config.schedule.lr=fast: it has to be a number'),
        (['--config.augment.flip=maybe'], '--config.augment.flip=maybe: it has to be True or False'),
        (['--config.data.image_size=(8,'], '--config.data.image_size=(8,: it has to be a list, as "(8, 8)"'),
        (['--config.encoder=ViT'], '--config.encoder=ViT: it has to be set key by key, as --config.encoder.name=ViT'),
        (['--config=configs/quikstart.py'], 'no config file configs/quikstart.py: did you mean configs/quickstart.py?'),
        (['--config=configs/mae.py:xx'], "no variant 'xx': use one of tiny, s, b, l, h, or vit_SIZEPATCH as vit_l16"),
        (['--confg=x'], "Unknown command line flag 'confg'. Did you mean: config ?"),
        (['--mode=test'], 'flag --mode=test: value should be one of <train|eval>'),
        (['total_steps=3'], "cannot make sense of 'total_steps=3': options look like --config.key=value"),
        (['--workdir='], '--workdir=DIR is missing: it holds the checkpoints, metrics and pictures of the run'),
        (['--workdir=gs://b/a'], f'--workdir=gs://b/a {URL}'),
        (['--config.data.path=gs://b/a'], f'--config.data.path=gs://b/a {URL}'),
        (['--config.data.val_path=s3://b/*.parquet'], f'--config.data.val_path=s3://b/*.parquet {URL}'),
        (['--config.init=gs://b/a'], f'--config.init=gs://b/a {URL}'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_and_status_2(command, args, says):
    first = [] if args[0].startswith('--config=') else [QUICK]
    status, err, called = command(*first, *args)
    assert (status, err, called) == (2, f'mim_jax: {says}\n', [])


def test_no_config(command):
    for mode in ('train', 'eval'):
        status, err, _ = command(f'--mode={mode}')
        assert (
            status == 2
            and err
            == 'mim_jax: --config=configs/NAME.py is missing: it says what to train (try configs/quickstart.py)\n'
        )


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/runs/a/config.json.tmp')


def fails(error):
    def run(*args):
        raise error

    return run


@pytest.mark.parametrize(
    ('run', 'status', 'says'),
    [
        (lambda *args: 143, 143, ''),
        (fails(InputError('no such part')), 2, 'mim_jax: no such part\n'),
        (fails(RunError('too much is bad')), 1, 'mim_jax: too much is bad\n'),
        (full, 1, 'mim_jax: /runs/a/config.json.tmp: No space left on device\n'),
    ],
)
def test_how_a_run_ends_is_the_exit_status(command, run, status, says):
    assert command(QUICK, run=run)[:2] == (status, says)


def test_a_traceback_if_asked_for(command):
    status, err, _ = command(QUICK, '--traceback', run=fails(RunError('too much is bad')))
    assert status == 1 and err.startswith('Traceback') and err.endswith('mim_jax: too much is bad\n')


def test_a_bug_is_not_hidden(command):
    with pytest.raises(ZeroDivisionError):
        command(QUICK, run=lambda *args: 1 // 0)


def test_as_a_program(tmp_path):
    """Fails before JAX is imported, wherever it is called from a checkout."""
    args = [QUICK, f'--workdir={tmp_path}', '--config.data.pth=x']
    ran = subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'mim_jax.main', *args], cwd=ROOT, capture_output=True, text=True
    )
    *imports, says = ran.stderr.strip().splitlines()
    assert (
        ran.returncode == 2
        and says == "mim_jax: --config.data.pth=x: the config has no key 'pth'. Did you mean 'path'?"
    )
    assert ran.stdout == '' and not any(line.endswith('| jax') for line in imports)
