"""What the doctor says of a healthy machine and of sick ones."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from mim_jax.errors import RunError
from mim_jax.tools import doctor, doctor_looks
from mim_jax.tools.doctor_looks import Line
from tests.many import ROOT, Group, free_port

QUICK = f'--config={ROOT}/configs/quickstart.py'


def run(*arguments, **environment):
    """(exit status, {check: line}, what it printed) of the program."""
    command = [sys.executable, '-m', 'mim_jax.tools.doctor', *arguments]
    env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'} | environment
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    found = {line.split()[1]: line for line in ran.stdout.splitlines() if line[:4] in ('ok  ', 'warn', 'FAIL')}
    return ran.returncode, found, ran.stdout + ran.stderr


def test_a_healthy_machine(tmp_path):
    np.savez(tmp_path / 'records.npz', images=np.zeros((50, 8, 8, 1), np.uint8))
    status, found, said = run(QUICK, f'--workdir={tmp_path / "new"}', f'--data={tmp_path / "records.npz"}', '--hosts=1')
    assert status == 0, said
    assert {line[:4] for line in found.values()} <= {'ok  ', 'warn'}
    assert found.keys() == {
        'python',
        'packages',
        'workdir',
        'compile',
        'data',
        'hosts',
        'devices',
        'all-reduce',
        'loader',
    }
    assert '2 x cpu' in found['devices'] and 'records/s' in found['loader'] and '1 files' in found['data']
    assert not list((tmp_path / 'new').iterdir())


def test_what_is_wrong_is_said_and_the_rest_is_looked_at(tmp_path):
    (tmp_path / 'file').touch()
    status, found, said = run(f'--workdir={tmp_path / "file" / "run"}', '--data=/nowhere', '--hosts=2', '--timeout=60')
    assert status == 1 and '3 of 8 checks failed: workdir, data, hosts' in said
    assert (
        'Not a directory' in found['workdir']
        and 'no file there' in found['data']
        and '1 instead of 2' in found['hosts']
    )
    assert 'JAX_COORDINATOR_ADDRESS' in said and '2 x cpu' in found['devices']


def test_a_host_that_does_not_come(tmp_path):
    environment = {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{free_port()}',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '0',
    }
    status, found, said = run('--timeout=1', **environment)
    assert status == 1 and '1 of 2 hosts came' in found['hosts'] and 'missing: 1;' in found['hosts']
    assert 'devices' not in found  # which would wait for the other


def test_a_wrong_option():
    status, _, said = run('--host=2')
    assert status == 2 and 'Unknown command line flag' in said


@pytest.mark.slow
def test_two_hosts(tmp_path):
    group = Group(tmp_path, 2, QUICK, f'--workdir={tmp_path}', '--hosts=2', module='mim_jax.tools.doctor')
    assert group.ends()[0] == [0, 0], group.said(0)
    for i in range(2):
        said = group.said(i)
        for text in (
            '2 by JAX_NUM_PROCESSES=2',
            'the same folder on all hosts',
            '2 x cpu, 1 of this host',
            'GB/s over 2 devices',
            's apart',
        ):
            assert text in said


def fake(monkeypatch, tmp_path, script):
    """Lets a shell script be the second process."""
    path = tmp_path / 'python'
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setattr(doctor.sys, 'executable', str(path))


def test_a_look_that_hangs_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, 'GRACE', 0.0)
    fake(monkeypatch, tmp_path, 'echo noise; echo \'{"at": "devices"}\'; exec sleep 60')
    start = time.monotonic()
    (line,) = doctor.ask([], 0.5)
    assert time.monotonic() - start < 30
    assert line == Line('devices', 'FAIL', 'no answer within 0 s', doctor.LATE['devices'])
    assert doctor.LATE.keys() >= {
        'start',
        'hosts',
        'devices',
        'all-reduce',
        'workdir',
        'data',
        'loader',
        'compile cache',
    }


def test_a_look_that_crashes_gives_its_last_words(monkeypatch, tmp_path):
    fake(
        monkeypatch,
        tmp_path,
        'echo \'{"at": "devices"}\'; echo F some check failed >&2; echo mim_jax: the reason >&2; echo more >&2; exit 3',
    )
    assert list(doctor.ask([], 10)) == [Line('devices', 'FAIL', 'ended with status 3', 'the reason')]


@pytest.mark.parametrize(('versions', 'state', 'why'), [
    ({}, 'ok', 'jax 0.'),
    ({'optax': '0.1'}, 'FAIL', 'optax 0.1 is there, mim_jax .* wants >=0.2.6'),
    ({'grain': ''}, 'FAIL', 'grain is missing'),
    ({'jaxlib': '0.3.0'}, 'FAIL', 'jaxlib 0.3.0 is there, jax .* wants'),
    ({'libtpu': '0.0.1'}, 'FAIL', 'libtpu 0.0.1 is there, jax .* wants'),
])  # fmt: skip
def test_versions(monkeypatch, versions, state, why):
    real = doctor.version
    monkeypatch.setattr(doctor, 'version', lambda package: versions.get(package, real(package)))
    python, packages = doctor.versions()
    assert python.state == 'ok' and packages.state == state
    with pytest.raises(RunError, match=why):
        raise RunError(packages.seen)
    assert bool(packages.advice) == (state == 'FAIL')


@pytest.mark.parametrize(('environment', 'has', 'tpus', 'why'), [
    ({'JAX_PLATFORMS': 'cpu'}, 'tpu', 4, 'JAX_PLATFORMS=cpu hides it'),
    ({}, 'gpu', 0, r"pip install -e '.\[cuda\]'"),
    ({'JAX_PLATFORMS': 'cuda'}, 'gpu', 0, r"pip install -e '.\[cuda\]'"),
    ({}, 'tpu', 4, 'process 12 of this machine holds the TPU'),
])  # fmt: skip
def test_why_an_accelerator_is_not_seen(monkeypatch, environment, has, tpus, why):
    monkeypatch.delenv('JAX_PLATFORMS')
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor_looks, 'holding', lambda: iter([12, os.getpid()]))
    with pytest.raises(RunError, match=why):
        raise RunError(doctor_looks.trouble(has, tpus))
    monkeypatch.setattr(doctor_looks, 'holding', lambda: iter([]))
    assert 'without libtpu' in doctor_looks.trouble('tpu', 4) or environment or has == 'gpu'


def test_who_has_an_accelerator_open(monkeypatch, tmp_path):
    links = {'/proc/self/fd/1': '/dev/pts/0'}
    monkeypatch.setattr(
        doctor_looks.os, 'readlink', lambda path: links.get(str(path), '/dev/vfio/0' if '/12/' in str(path) else '/x')
    )
    monkeypatch.setattr(doctor_looks.os, 'listdir', lambda path: ['12', '13', 'sys', '14'])
    entries = {'12': ['/proc/12/fd/0'], '13': ['/proc/13/fd/0']}

    def scandir(path):
        if '/14/' in path:
            raise PermissionError
        return [type('Entry', (), dict(path=entry))() for entry in entries[path.split('/')[2]]]

    monkeypatch.setattr(doctor_looks.os, 'scandir', scandir)
    assert list(doctor_looks.holding()) == [12]


def test_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    (line,) = doctor_looks.of_workdir(str(tmp_path))
    assert line.state in ('ok', 'warn') and 'MB/s' in line.seen
    monkeypatch.setattr(doctor_looks.shutil, 'disk_usage', lambda path: type('Usage', (), dict(free=1e9))())
    (line,) = doctor_looks.of_workdir(str(tmp_path))
    assert line.state == 'warn' and '1.0 GB free' in line.seen and 'keep_checkpoints' in line.advice


def test_a_bucket_is_a_fail_and_not_the_end(capsys):
    assert doctor_looks.say('workdir', doctor_looks.of_workdir('gs://bucket/run'))
    asked, line = capsys.readouterr().out.splitlines()
    assert asked == '{"at": "workdir"}' and '"state": "FAIL"' in line and 'mount the bucket' in line


@pytest.mark.parametrize('path', ['*.bin', '.', 'a.bin'])
def test_bandwidth_of_files(tmp_path, path):
    for name in 'ab':
        (tmp_path / f'{name}.bin').write_bytes(os.urandom(100_000))
    (line,) = doctor_looks.of_data(str(tmp_path / path))
    count = 1 if path == 'a.bin' else 2
    assert line.state == 'ok' and f'{count} files' in line.seen and f'over {count} of them, 100.0 kB each' in line.seen


def test_a_cache_that_cannot_be_kept(monkeypatch, tmp_path):
    import jax

    (tmp_path / 'file').touch()
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'said')
    jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'file' / 'cache'))
    try:
        (line,) = doctor_looks.of_cache(None, False)
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
    assert line.state == 'warn' and 'JAX_COMPILATION_CACHE_DIR' in line.advice
