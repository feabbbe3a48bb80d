"""The loop as a whole: what it does when told to stop, when run again, and when numbers go wrong."""
# ruff: noqa: F811  (fixtures are imported)

import importlib
import json
import signal

import numpy as np
import pytest

from mim_jax import evaluate, inputs, record, train
from mim_jax.errors import InputError, RunError
from tests.runs import (  # noqa: F401 (fixtures)
    compiled_once,
    events,
    final,
    hostile,
    lines,
    logged,
    records,
    run,
    signal_at,
)


def poison(patch, steps):
    """Puts an infinity into the batches of these steps (counted from 1)."""
    real = inputs.Data.train

    def train_with_poison(self, start):
        for i, (batch, report) in enumerate(real(self, start)):
            if start // len(batch['valid']) + i + 1 in steps:
                batch['image'][0, 0, 0] = np.inf
            yield batch, report

    patch.setattr(inputs.Data, 'train', train_with_poison)


def test_a_signal_in_an_evaluation_cuts_it_short_and_saves(run, tmp_path, monkeypatch):
    often = {'eval_every': 2, 'evals_often': ('knn',), 'evals.knn.k': 3}
    with monkeypatch.context() as patch:
        signal_at(patch, evaluate.Evaluation, '_run', 2)  # the first one is before step 1
        assert run(**often) == 143
    steps = [line['step'] for line in lines(tmp_path / 'run' / 'metrics.jsonl') if 'eval/knn_top1' in line]
    assert steps == [0] and final(tmp_path / 'run')[1]['next_sample'] == 16
    assert run(**often) == 0
    assert [line['step'] for line in lines(tmp_path / 'run' / 'metrics.jsonl') if 'eval/knn_top1' in line] == [
        0,
        2,
        4,
        6,
    ]


@pytest.mark.parametrize(
    ('place', 'name', 'kind'), [(train, 'prepare', signal.SIGINT), (evaluate.Evaluation, 'final', signal.SIGTERM)]
)
def test_a_signal_outside_the_steps_stops_at_once(run, tmp_path, monkeypatch, capfd, place, name, kind):
    with monkeypatch.context() as patch:
        signal_at(patch, place, name, 1, kind)
        assert run() == 143
    assert 'goes on from the last checkpoint' in capfd.readouterr().err
    assert run() == 0 and logged(tmp_path / 'run') == [1, 2, 4, 6]


def test_run_again_after_the_end_prints_the_table_and_nothing_else(run, tmp_path, capfd):
    last = {'evals_last': ('knn',), 'evals.knn.k': 3}
    assert run(**last) == 0
    table = capfd.readouterr().err.partition('|')[2]
    assert 'kNN top-1' in table and 'linear' not in table
    before = (tmp_path / 'run' / 'metrics.jsonl').read_text()
    assert run(**last) == 0
    assert capfd.readouterr().err.partition('|')[2] == table
    assert (tmp_path / 'run' / 'metrics.jsonl').read_text() == before and len(
        events(tmp_path / 'run', 'compilation')
    ) == 1


def test_evaluating_drops_nothing(run, tmp_path):
    assert run(checkpoint_every=4, total_steps=5) == 0
    for _ in (4, 5):
        before = lines(tmp_path / 'run' / 'metrics.jsonl')
        assert run(mode='eval', evals_last=('knn',), **{'evals.knn.k': 3}) == 0
        *kept, new = lines(tmp_path / 'run' / 'metrics.jsonl')
        assert kept == before and new['step'] == 5 and new.keys() == {'step', 'eval/knn_top1'}
        assert json.loads((tmp_path / 'run' / 'config.json').read_text())['evals_last'] == []
    with pytest.raises(InputError, match='no checkpoint to evaluate: train first'):
        run('nowhere', mode='eval')


def test_another_architecture_is_refused_and_nothing_is_lost(run, tmp_path):
    assert run() == 0
    before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()}
    with pytest.raises(InputError, match='of another architecture: params/.* choose another --workdir') as error:
        run(**{'encoder.width': 32})
    assert '\n' not in str(error.value)
    assert {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()} == before


def test_two_trainers_do_not_share_a_directory(run, tmp_path):
    (tmp_path / 'run').mkdir()
    with record.alone(tmp_path / 'run'), pytest.raises(InputError, match='another process is training in'):
        run()
    assert not list((tmp_path / 'run').glob('*'))


def test_one_poisoned_batch_is_skipped(run, records, tmp_path, monkeypatch, capfd):
    floats = {'data.path': str(records / 'float.npz'), 'data.val_path': '', 'data.dtype': 'float32', 'log_every': 1}
    poison(monkeypatch, {3})
    assert run(**floats) == 0
    state, position = final(tmp_path / 'run')
    assert all(np.isfinite(x).all() for x in state.values() if x.dtype.kind == 'f')
    assert position['skipped_steps'] == 1 and position['lr_scale'] == 1.0
    (event,) = events(tmp_path / 'run', 'skipped_step')
    assert event['step'] == 3 and event['parameter'].startswith('encoder/') and event['loss'] in ('nan', 'inf')
    assert np.isinf(np.load(event['batch'])['image']).sum() == 1
    found = {line['step']: line for line in lines(tmp_path / 'run' / 'metrics.jsonl')}
    assert found[3]['train/loss'] is None and found[6]['train/skipped_steps'] == 1 and found[6]['train/loss'] > 0


def test_always_poisoned_rolls_back_once_and_stops(run, records, tmp_path, monkeypatch, capfd):
    floats = {'data.path': str(records / 'float.npz'), 'data.val_path': '', 'data.dtype': 'float32', 'log_every': 1}
    poison(monkeypatch, range(5, 100))
    with pytest.raises(
        RunError,
        match=r'[34] steps in a row up to step \d were not finite, first in encoder/.*, again after going back with half',
    ):
        run(max_bad_steps=3, checkpoint_every=2, total_steps=12, **floats)
    (event,) = events(tmp_path / 'run', 'rollback')
    assert event['to'] == 4 and event['lr_scale'] == 0.5 and event['parameter'].startswith('encoder/')
    assert 'going back to step 4 with half the learning rate' in capfd.readouterr().err
    assert [event['step'] for event in events(tmp_path / 'run', 'save')] == [2, 4]  # none amid bad steps
    assert logged(tmp_path / 'run') == sorted(set(logged(tmp_path / 'run')))
    assert final(tmp_path / 'run')[1]['next_sample'] == 32


def test_no_checkpoint_to_go_back_to(run, records, tmp_path, monkeypatch):
    """Bad from the first step on: goes back to the start, whose batches are good the second time."""
    floats = {'data.path': str(records / 'float.npz'), 'data.val_path': '', 'data.dtype': 'float32', 'log_every': 1}
    bad = {1, 2, 3}
    poison(monkeypatch, bad)
    monkeypatch.setattr(train, 'roll_back', lambda *args, real=train.roll_back: (bad.clear(), real(*args))[1])
    assert run(max_bad_steps=3, **floats) == 0
    assert events(tmp_path / 'run', 'rollback')[0]['to'] == 0
    position = final(tmp_path / 'run')[1]
    assert position == dict(next_sample=48, skipped_steps=3, lr_scale=0.5, rollbacks=1)
    assert logged(tmp_path / 'run') == [1, 2, 3, 4, 5, 6]


def test_a_hostile_folder_is_trained_on(run, hostile, tmp_path, capfd):
    assert run(**{'data.path': str(hostile), 'data.val_path': ''}) == 0
    listed = {line['name']: line['reason'] for line in lines(tmp_path / 'run' / 'bad_samples.jsonl')}
    assert listed.keys() == {'truncated.jpg', 'zero.jpg', 'text.jpg', 'one.png'}
    assert {event['name'] for event in events(tmp_path / 'run', 'bad_sample')} == listed.keys()
    assert {name for event in events(tmp_path / 'run', 'converted') for name in event['names']} >= {
        'cmyk.jpg',
        'deep.png',
        'moving.webp',
    }
    assert f'4 records could not be used: {tmp_path}/run/bad_samples.jsonl says why' in capfd.readouterr().err
    assert all(np.isfinite(x).all() for x in final(tmp_path / 'run')[0].values() if x.dtype.kind == 'f')
    assert lines(tmp_path / 'run' / 'metrics.jsonl')[-1]['data/bad_samples'] == 4


@pytest.mark.parametrize(
    ('origin', 'batch', 'says'),
    [
        ({}, 3, ['no --config.data.path: training on builtin:digits', 'on a CPU: data.batch_size=3, not 64']),
        ({'data.batch_size': 'command line', 'data.path': 'command line'}, 64, []),
    ],
)
def test_what_the_command_line_leaves_open_is_settled_and_said(origin, batch, says):
    config = importlib.import_module('configs.quickstart').get_config()
    config.data.update(batch_size=64, cpu_batch_size=3)
    told = train.for_this_machine(config, origin)
    assert config.data.batch_size == batch and len(told) == len(says)
    assert all(line.startswith(start) for line, start in zip(told, says, strict=True))


def test_a_run_that_takes_days_on_a_cpu_names_a_smaller_one(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, 'CPU_FLOPS', 1.0)
    assert run(total_steps=1, smaller='configs/videomae.py:tiny') == 0
    assert 'days on a CPU; made for one: --config=configs/videomae.py:tiny' in capsys.readouterr().err


def test_mfu_is_over_the_devices_of_the_mesh(run, tmp_path, monkeypatch):
    monkeypatch.setattr('mim_jax.progress.peak_flops', lambda kind: 1e12)
    assert run(total_steps=1, **{'mesh.data': 2}) == 0  # of eight
    (line,) = lines(tmp_path / 'run' / 'metrics.jsonl')
    assert line['train/mfu'] == pytest.approx(line['train/flops_per_sec'] / 2e12)


def test_a_run_on_images_ends_with_fine_tuning(run, tmp_path):
    tune = {'evals.finetune.steps': 2, 'evals.finetune.batch_size': 8, 'evals_last': ('finetune',)}
    assert run(total_steps=1, **tune) == 0
    assert 'eval/finetune_top1' in lines(tmp_path / 'run' / 'metrics.jsonl')[-1]
    assert (tmp_path / 'run' / 'finetune_confusions' / '1.png').exists()
