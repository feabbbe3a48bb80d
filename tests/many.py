"""Several processes of this machine as the hosts of one run; as a program, a trainer that notes what it reads, and breaks where it is told to.

python -m tests.many --config=...      (as mim_jax.main)
"""

import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mim_jax.errors import InputError

ROOT = Path(__file__).parents[1]
TINY = {'width': 16, 'depth': 1, 'heads': 2}
RECORDS = 23
PATIENCE = 600  # seconds, of a machine that has much to do


class Group:
    """`count` processes of a program, each with `devices` fake CPU devices; what host i says is in FOLDER/said.i.

    Args:
        folder: where they write to; also their --workdir, if `arguments` has none.
        arguments: of the program.
        each: more of them, of each host.
        cwd: where each host runs.
        breaks: [dict(host=, place='mim_jax.sharding', name='put', call=3, what='kill')], see `broken`.
    """

    def __init__(
        self, folder, count, *arguments, module='tests.many', devices=1, breaks=(), each=(), cwd=(), **environment
    ):
        self.folder, self.count, port = folder, count, free_port()
        folder.mkdir(exist_ok=True)
        where = {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(count)} if count > 1 else {}
        flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'
        where |= {
            'XLA_FLAGS': flags,
            'JAX_PLATFORMS': 'cpu',
            'BREAKS': json.dumps(list(breaks)),
            'PYTHONPATH': str(ROOT),
        }
        where |= environment
        self.processes = []
        for i in range(count):
            own = {'JAX_PROCESS_ID': str(i)} if count > 1 else {}
            command = [sys.executable, '-m', module, *arguments, *(each[i] if each else ())]
            with open(folder / f'said.{i}', 'w') as said:
                self.processes.append(subprocess.Popen(command, cwd=cwd[i] if cwd else ROOT, env=os.environ | where | own, stdout=said, stderr=said, start_new_session=True))  # fmt: skip

    def said(self, i):
        return (self.folder / f'said.{i}').read_text()

    def last(self, i):
        """The last line of host i."""
        return self.said(i).strip().rpartition('\n')[2]

    def ends(self, frozen=None):
        """The exit statuses, when all have ended (besides one that is frozen), and the seconds since the first, or since it froze."""
        end, first, waited = time.monotonic() + PATIENCE, None, [p for i, p in enumerate(self.processes) if i != frozen]
        while any(process.poll() is None for process in waited):
            if first is None and (
                any(p.poll() is not None for p in waited) or frozen is not None and self.stopped(frozen)
            ):
                first = time.monotonic()
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError('\n'.join(f'--- {i}\n{self.said(i)[-3000:]}' for i in range(self.count)))
            time.sleep(0.05)
        return [process.poll() for process in self.processes], time.monotonic() - (first or time.monotonic())

    def stopped(self, i):
        """Whether host i has been frozen by SIGSTOP."""
        return Path(f'/proc/{self.processes[i].pid}/stat').read_text().rpartition(')')[2].split()[0] == 'T'

    def signal(self, i, kind):
        os.killpg(self.processes[i].pid, kind)

    def kill(self):
        for i, process in enumerate(self.processes):
            if process.poll() is None:
                self.signal(i, signal.SIGKILL)
                process.wait()


def free_port():
    with socket.socket() as some:
        some.bind(('127.0.0.1', 0))
        return some.getsockname()[1]


def write_records(path):
    """Records that tell their number: pixel (0, 0)."""
    images = np.random.default_rng(0).integers(0, 256, (RECORDS, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(RECORDS)
    np.savez(path, images=images, labels=np.arange(RECORDS) % 3)


def small(path, **changes):
    """Arguments of the trainer for those records."""
    values = {f'{part}.{key}': x for part in ('encoder', 'terms.pixels.predictor') for key, x in TINY.items()}
    values |= {f'data.{name}': '(4, 4)' for name in ('image_size', 'canvas')}
    values |= {'data.path': path, 'data.val_path': path, 'data.batch_size': 8, 'total_steps': 8, 'log_every': 1}
    values |= {'eval_every': 0, 'checkpoint_every': 2, 'evals_often': '()', 'evals_last': '()', 'tensorboard': False}
    values |= {'dtype': 'float32', 'schedule.warmup_steps': 2} | changes
    return [f'--config={ROOT}/configs/quickstart.py', *(f'--config.{key}={value}' for key, value in values.items())]


def reads(folder, hosts):
    """{global sample index of a batch: records of its rows, those of all hosts in their order}, of the last reading of each."""
    found = {}
    for i in range(hosts):
        path = folder / f'reads.{i}.jsonl'
        own = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for start, rows in dict(own).items():
            found.setdefault(start, []).extend(rows)
    return found


def noted(train):
    """`Data.train` that notes the numbers of the records of every batch the run takes."""
    import jax

    @functools.wraps(train)
    def noting(self, start):
        path = self.workdir / f'reads.{jax.process_index()}.jsonl'
        for batch, report in train(self, start):
            with path.open('a') as file:
                file.write(json.dumps([start, batch['image'][:, 0, 0, 0].tolist()]) + '\n')
            yield batch, report
            start += len(batch['valid']) * jax.process_count()

    return noting


def broken(function, call, what):
    """A function that at a call kills its process, freezes it, sleeps some seconds ('sleep 3'), or raises what `what` names."""
    calls = []

    @functools.wraps(function)
    def breaking(*args, **kwargs):
        calls.append(0)
        if len(calls) == call:
            if what.startswith('sleep '):
                time.sleep(float(what.removeprefix('sleep ')))
            elif what in ('SIGKILL', 'SIGSTOP', 'SIGTERM'):
                os.kill(os.getpid(), getattr(signal, what))
                time.sleep(3)  # until JAX has heard of SIGTERM
            else:
                raise dict(InputError=InputError('told to break'), TypeError=TypeError('told to break'), OSError=OSError(28, 'No space left on device'))[what]  # fmt: skip
        return function(*args, **kwargs)

    return breaking


def main():
    from mim_jax import hosts, inputs, main

    hosts.HANG = float(os.environ.get('HANG', hosts.HANG))
    for each in json.loads(os.environ.get('BREAKS', '[]')):
        if each['host'] == int(os.environ.get('JAX_PROCESS_ID', 0)):
            place, *inner = each['place'].split(':')
            owner = functools.reduce(getattr, inner, importlib.import_module(place))
            setattr(owner, each['name'], broken(getattr(owner, each['name']), each['call'], each['what']))
    inputs.Data.train = noted(inputs.Data.train)
    main.let_threads_be_silent()
    return main.main(sys.argv)


if __name__ == '__main__':
    sys.exit(main())
