"""The loop as a whole: stops, goes on, skips, rolls back; and the same numbers on any number of devices."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mim_jax import evaluate, inputs, sharding, train
from mim_jax.checkpoint import Checkpoints
from mim_jax.data.pipeline import shuffled
from mim_jax.errors import InputError, RunError

ROOT = Path(__file__).parents[1]
RECORDS = 23
TINY = {'width': 16, 'depth': 1, 'heads': 2}


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


def poison(patch, steps):
    """Puts an infinity into the batches of these steps (counted from 1)."""
    real = inputs.Data.train

    def train_with_poison(self, start):
        for i, (batch, report) in enumerate(real(self, start)):
            if start // len(batch['valid']) + i + 1 in steps:
                batch['image'][0, 0, 0] = np.inf
            yield batch, report

    patch.setattr(inputs.Data, 'train', train_with_poison)


def test_stopped_and_resumed_is_bit_equal(run, tmp_path, monkeypatch, capfd):
    assert run('whole') == 0
    with monkeypatch.context() as patch:
        signal_at(patch, sharding, 'put', 3)
        assert run('parts') == train.PREEMPTED == 143
    assert 'told to stop: saved at step 3' in capfd.readouterr().err
    assert final(tmp_path / 'parts')[1]['next_sample'] == 24
    assert run('parts') == 0
    assert_same_state(final(tmp_path / 'whole'), final(tmp_path / 'parts'))
    assert logged(tmp_path / 'whole') == logged(tmp_path / 'parts') == [1, 2, 4, 6]
    whole, parts = (
        [line['train/loss'] for line in lines(tmp_path / name / 'metrics.jsonl')] for name in ('whole', 'parts')
    )
    assert whole == parts
    assert {line['train/compilations'] for line in lines(tmp_path / 'parts' / 'metrics.jsonl')} == {1}


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


def test_another_batch_size_goes_on_at_the_same_sample(run, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        signal_at(patch, sharding, 'put', 3)
        assert run() == 143
    seen = []
    real = inputs.Data.train
    monkeypatch.setattr(inputs.Data, 'train', lambda self, start: (seen.append(start), real(self, start))[1])
    assert run(**{'data.batch_size': 4, 'schedule.lr': 0.5}) == 0
    assert seen == [24] and final(tmp_path / 'run')[1]['next_sample'] == 24 + 3 * 4
    assert 'changed since the last start: data.batch_size 8 -> 4, schedule.lr 0.002 -> 0.5' in capfd.readouterr().err
    (event,) = events(tmp_path / 'run', 'config_changed')
    assert event['keys'] == {'data.batch_size': [8, 4], 'schedule.lr': [0.002, 0.5]}


def test_another_architecture_is_refused_and_nothing_is_lost(run, tmp_path):
    assert run() == 0
    before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()}
    with pytest.raises(InputError, match='of another architecture: params/.* choose another --workdir') as error:
        run(**{'encoder.width': 32})
    assert '\n' not in str(error.value)
    assert {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()} == before


def test_two_trainers_do_not_share_a_directory(run, tmp_path):
    from mim_jax import record

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
    monkeypatch.setattr(train, 'restarted', lambda *args, real=train.restarted: (bad.clear(), real(*args))[1])
    assert run(max_bad_steps=3, **floats) == 0
    assert events(tmp_path / 'run', 'rollback')[0]['to'] == 0
    position = final(tmp_path / 'run')[1]
    assert position == dict(next_sample=48, skipped_steps=3, lr_scale=0.5, rollbacks=1)
    assert logged(tmp_path / 'run') == [1, 2, 3, 4, 5, 6]


def test_every_sample_once_an_epoch_through_checkpoints(run, tmp_path, monkeypatch):
    """What each process trained on between its restarts, put together by the positions in the checkpoints."""
    for stop in (2, 3, 100):
        with monkeypatch.context() as patch:
            signal_at(patch, sharding, 'put', stop)
            run(total_steps=9)
    starts = [event['next_sample'] for event in events(tmp_path / 'run', 'start')]
    ends = [event['next_sample'] for event in events(tmp_path / 'run', 'save')]
    assert starts == [0, 16, 40] and ends == [16, 40, 72]
    assert all(end == start for (_, start), end in zip(pairwise(starts), ends, strict=False))
    seen = [shuffled(i, RECORDS, seed=0) for start, end in zip(starts, ends, strict=True) for i in range(start, end)]
    for epoch in range(3):
        assert sorted(seen[epoch * RECORDS : (epoch + 1) * RECORDS]) == list(range(RECORDS))


ONE = {'total_steps': 5, 'log_every': 1, 'data.batch_size': 16}
MESHES = {
    '1 device in 4 parts': {'micro_batch': 4},
    '8 devices': {'mesh.data': 8},
    '8 devices in 2 parts': {'mesh.data': 8, 'micro_batch': 1},
    '4 x 2 devices': {'mesh.data': 4, 'mesh.fsdp': 2},
    '2 x 2 x 2 devices in 2 parts': {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.model': 2, 'micro_batch': 2},
}


@pytest.mark.slow
def test_the_same_on_any_mesh_with_and_without_accumulation(run, tmp_path):
    assert run('one', **ONE) == 0
    expected, _ = final(tmp_path / 'one')
    losses = [line['train/loss'] for line in lines(tmp_path / 'one' / 'metrics.jsonl')]
    for name, mesh in MESHES.items():
        assert run(name, **ONE, **mesh) == 0
        found, _ = final(tmp_path / name)
        np.testing.assert_allclose(
            [line['train/loss'] for line in lines(tmp_path / name / 'metrics.jsonl')], losses, rtol=1e-5, err_msg=name
        )
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        for path in expected:
            if 'params' in path:
                close(found[path], expected[path], err_msg=f'{name}: {path}')


def test_a_checkpoint_goes_on_on_another_mesh(run, tmp_path, monkeypatch):
    assert run('one', **ONE) == 0
    with monkeypatch.context() as patch:
        signal_at(patch, sharding, 'put', 2)
        assert run('two', **ONE, **MESHES['8 devices in 2 parts']) == 143
    assert run('two', **ONE, **MESHES['4 x 2 devices']) == 0
    (a, _), (b, _) = final(tmp_path / 'one'), final(tmp_path / 'two')
    for path in a:
        if 'params' in path:
            np.testing.assert_allclose(a[path], b[path], rtol=1e-5, atol=1e-5, err_msg=path)


PROGRAM = [sys.executable, '-m', 'mim_jax.main', '--config=configs/quickstart.py']
PROGRAM += [
    f'--config.{part}.{key}={value}' for part in ('encoder', 'terms.pixels.predictor') for key, value in TINY.items()
]
PROGRAM += [
    f'--config.{change}'
    for change in ('data.batch_size=8', 'total_steps=60', 'log_every=1', 'checkpoint_every=1', 'eval_every=0')
]
PROGRAM += [
    f'--config.{change}'
    for change in ('evals_often=()', 'evals_last=()', 'tensorboard=False', 'dtype=float32', 'mesh.data=1')
]


def start(workdir, records, *changes):
    """The trainer as a program."""
    command = [*PROGRAM, f'--workdir={workdir}', f'--config.data.path={records / "large.npz"}', *changes]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def count(workdir, kind):
    path = workdir / 'events.jsonl'
    return path.read_text().count(f'"event": "{kind}"') if path.exists() else 0


def kill_after(process, workdir, kind, seconds):
    """SIGKILL, to the loader's processes too, some time after the next event of a kind."""
    before = count(workdir, kind)
    while count(workdir, kind) == before and process.poll() is None:
        time.sleep(0.001)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, records):
    rng, workdir = np.random.default_rng(1), tmp_path_factory.mktemp('whole')
    np.savez(records / 'large.npz', images=rng.integers(0, 256, (RECORDS, 8, 8, 1), np.uint8))
    process = start(workdir, records)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1, 2, 4])
def test_killed_twenty_times(uninterrupted, records, tmp_path, workers):
    rng, kills, inside = np.random.default_rng(workers), 0, 0
    while kills < 20:
        process = start(tmp_path, records, f'--config.data.workers={workers}')
        kind, most = ('start', 2.0) if kills % 4 == 3 else ('save', 0.05)
        assert kill_after(process, tmp_path, kind, rng.uniform(0, most)), (
            'it came to its end before it was killed often enough'
        )
        kills += 1
        inside += any('tmp' in path.name for path in (tmp_path / 'checkpoints').iterdir())
    process = start(tmp_path, records, f'--config.data.workers={workers}')
    _, said = process.communicate()
    assert process.returncode == 0, said
    print(f'{kills} kills, {inside} inside a save, {count(tmp_path, "start")} starts')
    assert inside >= 3
    assert_same_state(final(uninterrupted), final(tmp_path))
    whole, parts = (
        {line['step']: line['train/loss'] for line in lines(name / 'metrics.jsonl')}
        for name in (uninterrupted, tmp_path)
    )
    assert whole == parts and logged(tmp_path) == list(
        range(1, 61)
    )  # the same samples in every step, and no step twice
    assert all(
        event['next_sample'] == 8 * event['step'] for kind in ('start', 'save') for event in events(tmp_path, kind)
    )


@pytest.mark.slow
def test_told_to_stop_as_a_program(uninterrupted, records, tmp_path):
    process = start(tmp_path, records)
    while not count(tmp_path, 'save'):
        time.sleep(0.001)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 143 and 'told to stop: saved at step' in said
    process = start(tmp_path, records)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert_same_state(final(uninterrupted), final(tmp_path))
