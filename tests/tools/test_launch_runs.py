"""What the written files do on a machine: the run, its doctor, signals, and resources that come and go; the services are stand-ins on PATH."""

import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mim_jax.tools import launch_job, launch_scripts
from mim_jax.tools.launch import TARGETS
from tests.tools.launched import ODD, bash, on_machine, program, written


@pytest.mark.parametrize('target', TARGETS)
def test_the_run_gets_the_words_of_the_command(tmp_path, machine, target):
    script = on_machine(target, tmp_path, f'command={ODD}')
    done = bash(script, machine, tmp_path, ATTEMPT='1', SLURM_CPUS_PER_TASK='8', SLURM_JOB_ID='7')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'ran').read_text().splitlines() == shlex.split(ODD)[1:]
    looked = (tmp_path / 'looked').read_text()
    assert '--workdir=/disk/my run' in looked and 'gcsfuse' not in script and 'mountpoint' not in script


@pytest.mark.parametrize('target', TARGETS)
def test_a_machine_that_is_not_well_runs_nothing(tmp_path, machine, target):
    (tmp_path / 'sick').write_text('1')
    done = bash(on_machine(target, tmp_path), machine, tmp_path, ATTEMPT='1', SLURM_CPUS_PER_TASK='8')
    assert done.returncode in (1, 65) and (tmp_path / 'looked').exists() and not (tmp_path / 'ran').exists()


def test_the_doctor_has_the_flags_it_is_given():
    from absl import flags

    from mim_jax.tools import doctor_looks  # noqa: F401 (defines them)

    given = re.findall('--([a-z]+)=', launch_scripts.doctor(launch_job.job_of('queued', {}), 4))
    assert given == ['hosts', 'timeout', 'workdir', 'data'] and all(name in flags.FLAGS for name in given)


@pytest.mark.parametrize('target', ['gke', 'xpk', 'queued', 'colab'])
def test_code_that_cannot_be_had_is_no_wrong_config(tmp_path, machine, target):
    program(tmp_path / 'bin', 'python3', 'exit 2\n')
    assert bash(on_machine(target, tmp_path), machine, tmp_path, ATTEMPT='1').returncode in (1, 65)
    assert not (tmp_path / 'looked').exists()


@pytest.mark.parametrize('target', ['gke', 'xpk', 'skypilot', 'kaggle'])
def test_a_signal_reaches_the_run(tmp_path, machine, target):
    (tmp_path / 'tenths').write_text('300')
    (tmp_path / 'script').write_text(on_machine(target, tmp_path))
    running = subprocess.Popen(['bash', 'script'], env=machine, cwd=tmp_path)
    try:
        wait_for(tmp_path / 'ran')
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 143
    finally:
        running.kill()
    assert (tmp_path / 'saves').read_text() == 'saved\n'


def wait_for(path: Path, lines: int = 1) -> None:
    end = time.monotonic() + 20
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < end, f'no {path.name}'
        time.sleep(0.05)


def test_slurm_requeues_what_saved_and_a_few_times_what_stopped(tmp_path, machine):
    script = on_machine('slurm', tmp_path)
    for status, restarts, requeued in ((0, 0, 0), (1, 10, 0), (2, 0, 0), (137, 0, 0), (143, 99, 1), (1, 9, 2)):
        (tmp_path / 'status').write_text(str(status))
        slurm = dict(SLURM_CPUS_PER_TASK='8', SLURM_JOB_ID='7', SLURM_RESTART_COUNT=str(restarts))
        assert bash(script, machine, tmp_path, **slurm).returncode == status
        asked = (tmp_path / 'requeued').read_text() if (tmp_path / 'requeued').exists() else ''
        assert asked == 'requeue 7\n' * requeued
    slurm.pop('SLURM_RESTART_COUNT')  # as at the first start
    assert bash(script, machine, tmp_path, **slurm).returncode == 1
    assert (tmp_path / 'requeued').read_text() == 'requeue 7\n' * 3


def test_a_worker_is_followed_and_not_started_twice(tmp_path, machine):
    script = on_machine('tpu_pod', tmp_path)
    (tmp_path / 'tenths').write_text('15')
    (tmp_path / 'status').write_text('143')
    first = subprocess.Popen(['bash', '-c', script], env=machine | dict(ATTEMPT='1'), cwd=tmp_path)
    wait_for(tmp_path / 'ran')
    first.kill()  # the connection breaks
    first.wait()
    again = bash(script, machine, tmp_path, ATTEMPT='1')  # gcloud connects again
    other = bash(script, machine, tmp_path, ATTEMPT='1')  # and once more, after the end
    assert again.returncode == other.returncode == 64 + 143
    assert (tmp_path / 'runs').read_text() == 'run\n'
    (tmp_path / 'status').write_text('0')
    assert bash(script, machine, tmp_path, ATTEMPT='2').returncode == 0
    assert (tmp_path / 'runs').read_text() == 'run\n' * 2


def test_a_worker_that_is_busy_is_followed_by_a_new_attempt(tmp_path, machine):
    script = on_machine('tpu_pod', tmp_path)
    (tmp_path / 'tenths').write_text('15')
    first = subprocess.Popen(['bash', '-c', script], env=machine | dict(ATTEMPT='1'), cwd=tmp_path)
    wait_for(tmp_path / 'ran')
    assert bash(script, machine, tmp_path, ATTEMPT='2').returncode == 0
    assert first.wait(20) == 0 and (tmp_path / 'runs').read_text() == 'run\n'


GCLOUD = """\
cd {folder}
printf '%q ' "$@" >>calls; echo >>calls
next() {{ local line; line=$(head -n 1 "$1"); [ "$(wc -l <"$1")" -le 1 ] || sed -i 1d "$1"; echo "$line"; }}
case "$4 $5" in
  describe*) state=$(next states)
    [ "$state" != NONE ] || {{ echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1; }}
    [ "$state" != OFFLINE ] || {{ echo 'ERROR: could not reach the server' >&2; exit 1; }}
    echo "$state" ;;
  create*) exit "$(next creates)" ;;
  ssh*) exit "$(next ends)" ;;
  delete*) exit 0 ;;
esac
"""


@pytest.fixture
def cloud(tmp_path, machine):
    """`queued` against a gcloud whose states of the resource and ends of the connection are given in their order."""
    program(tmp_path / 'bin', 'gcloud', GCLOUD.format(folder=tmp_path))
    written(tmp_path / 'files', 'queued')

    def run(states: str, ends: str = '0', creates: str = '0') -> tuple[int, list[str]]:
        for name, given in dict(states=states, ends=ends, creates=creates).items():
            (tmp_path / name).write_text('\n'.join(given.split()) + '\n')
        (tmp_path / 'calls').write_text('')
        done = bash(f'bash {tmp_path}/files/queued/run.sh', machine, tmp_path)
        calls = [line.split()[3] for line in (tmp_path / 'calls').read_text().splitlines()]
        return done.returncode, [call for call in calls if call != 'describe']

    return run


def attempts(tmp_path) -> list[str]:
    return re.findall(r'ATTEMPT=(\d+)', (tmp_path / 'calls').read_text())


def test_a_queued_run_that_reaches_its_end_gives_the_tpu_back(cloud):
    assert cloud('NONE WAITING_FOR_RESOURCES PROVISIONING ACTIVE') == (0, ['create', 'ssh', 'delete'])


def test_a_preempted_queued_resource_is_made_again(cloud):
    states = 'NONE ACTIVE SUSPENDING SUSPENDED NONE WAITING_FOR_RESOURCES ACTIVE'
    ended = cloud(states, ends='207 0')
    assert ended == (0, ['create', 'ssh', 'delete', 'create', 'ssh', 'delete'])


@pytest.mark.parametrize(('end', 'status'), [('66', 2), ('138', 74)])
def test_a_queued_run_that_cannot_go_on_stops(cloud, end, status):
    assert cloud('NONE ACTIVE', end) == (status, ['create', 'ssh', 'delete'])


def test_a_host_that_lost_the_others_to_a_preemption_goes_on(cloud):
    ended = cloud('ACTIVE SUSPENDED SUSPENDED NONE ACTIVE', ends='65 0')
    assert ended == (0, ['ssh', 'delete', 'create', 'ssh', 'delete'])


@pytest.mark.parametrize(('end', 'status'), [('65', 1), ('201', 137)])
def test_a_run_that_stops_while_its_tpu_stays_is_started_anew_but_not_for_ever(cloud, tmp_path, end, status):
    assert cloud('ACTIVE', ends=f'{end} {end} 0') == (0, ['ssh', 'ssh', 'ssh', 'delete'])
    assert len(set(attempts(tmp_path))) == 3
    assert cloud('ACTIVE', ends=end) == (status, [*['ssh'] * 11, 'delete'])


def test_lost_connections_and_preemptions_do_not_count_as_stops(cloud):
    ends = ' '.join(['65 255 207'] * 10)
    assert cloud('ACTIVE', ends=f'{ends} 0') == (0, [*['ssh'] * 31, 'delete'])


def test_a_run_that_saved_while_its_tpu_stays_is_started_anew(cloud, tmp_path):
    assert cloud('ACTIVE', ends='207 0') == (0, ['ssh', 'ssh', 'delete'])
    first, second = attempts(tmp_path)
    assert first != second


@pytest.mark.parametrize('end', ['255', '1', '2'])  # ssh, and what gcloud itself ends with
def test_a_lost_connection_is_taken_up_again(cloud, tmp_path, end):
    assert cloud('ACTIVE', ends=f'{end} {end} 0') == (0, ['ssh', 'ssh', 'ssh', 'delete'])
    assert len(set(attempts(tmp_path))) == 1


def test_a_tpu_that_cannot_be_reached_is_left_after_ten_times(cloud):
    assert cloud('ACTIVE', ends='255') == (1, ['ssh'] * 10)


def test_a_request_that_fails_is_made_again_but_not_for_ever(cloud):
    assert cloud('FAILED NONE NONE ACTIVE') == (0, ['delete', 'create', 'ssh', 'delete'])
    assert cloud('NONE', creates='1') == (1, ['create'] * 10)


def test_without_a_network_nothing_is_created(cloud):
    assert cloud('OFFLINE OFFLINE ACTIVE') == (0, ['ssh', 'delete'])


def test_a_tpu_vm_is_made_when_it_is_not_there_and_kept(tmp_path, machine):
    program(tmp_path / 'bin', 'gcloud', GCLOUD.format(folder=tmp_path))
    written(tmp_path / 'files', 'tpu_vm')
    for state, calls in (('NONE', 'create ssh'), ('READY', 'ssh'), ('PREEMPTED', 'delete create ssh')):
        for name, given in dict(states=state, ends='66', creates='0', calls='').items():
            (tmp_path / name).write_text(given + '\n' * bool(given))
        done = bash(f'bash {tmp_path}/files/tpu_vm/run.sh', machine, tmp_path)
        assert done.returncode == 2 and 'costs money until: gcloud' in done.stderr
        made = [line.split()[3] for line in (tmp_path / 'calls').read_text().splitlines()]
        assert made[1:] == calls.split()
