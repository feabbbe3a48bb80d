"""A run that is stopped, killed or moved to other devices ends as if nothing had happened."""
# ruff: noqa: F811  (fixtures are imported)

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from mim_jax import inputs, sharding, train
from mim_jax.data.pipeline import shuffled
from tests.runs import (  # noqa: F401 (fixtures)
    RECORDS,
    ROOT,
    TINY,
    assert_same_state,
    compiled_once,
    events,
    final,
    lines,
    logged,
    records,
    run,
    signal_at,
)


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


@pytest.mark.slow
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


FULL = 'mount -t tmpfs -o size=600k none "$1" && cd "$2" && shift 2 && "$@"; status=$?; ls "$DIR/checkpoints" >&2; exit $status'


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which('unshare') or subprocess.run(['unshare', '-rm', 'true'], capture_output=True).returncode,
    reason='needs a user namespace, for a small disk to fill',
)
def test_a_full_disk_is_one_sentence_and_checkpoints_stay(uninterrupted, records, tmp_path):
    command = [
        *PROGRAM,
        f'--workdir={tmp_path}',
        f'--config.data.path={records / "large.npz"}',
        '--config.keep_checkpoints=99',
    ]
    command = ['unshare', '-rm', 'sh', '-c', FULL, 'sh', str(tmp_path), str(ROOT), *command]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'DIR': str(tmp_path)})
    assert ran.returncode == 1 and 'Traceback' not in ran.stderr
    (sentence,) = (line for line in ran.stderr.splitlines() if line.startswith('mim_jax: '))
    assert 'no space left on device' in sentence.lower()
    assert '\n1\n' in ran.stderr
