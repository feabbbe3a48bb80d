"""Calls in a child process that may crash, hang or fail."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mim_jax.data import isolate
from mim_jax.data.image import Unreadable
from mim_jax.errors import InputError, RunError

ROOT = Path(__file__).parents[2]


def fill(value, out):
    out[...] = value
    return os.getpid()


def fill_first(value, out):
    out[:1] = value


def send_signal(number, out):
    os.kill(os.getpid(), number)


def leave(status, out):
    os._exit(status)


def sleep(seconds, out):
    time.sleep(seconds)


def fail(error, out):
    out[...] = 7
    raise error


class Stubborn(Exception):
    """Cannot be made again from its pickle."""

    def __init__(self, one, two):
        super().__init__(f'{one} and {two}')


def fail_stubbornly(out):
    raise Stubborn('this', 'that')


def take_memory(size, out):
    take_memory.kept = np.ones(size, np.uint8)
    return os.getpid()


def modules(out):
    return sorted(sys.modules)


def unpicklable(out):
    return lambda: 0


def run(function, *args, out=None, timeout=20.0):
    return isolate.run(function, *args, out=np.zeros(4, np.uint8) if out is None else out, timeout=timeout)


def is_alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')')[-1].split()[0] != 'Z'
    except OSError:
        return False


def gone(pid):
    """Within two seconds."""
    for _ in range(100):
        if not is_alive(pid):
            return True
        time.sleep(0.02)
    return False


def test_result_and_array_come_back():
    for dtype in (np.uint8, np.float32, np.int64):
        out = np.zeros((2, 3), dtype)
        pid = run(fill, 5, out=out)
        assert pid != os.getpid() and (out == 5).all()


def test_one_child_for_many_calls():
    assert len({run(fill, k % 256) for k in range(300)}) == 1


def test_arrays_large_and_small_in_turn():
    for k, shape in enumerate([(3,), (700, 1000), (2, 2), (), (0,), (900, 2000), (3, 0, 2), (5, 5)]):
        out = np.zeros(shape, np.float32)
        run(fill, k, out=out)
        assert (out == k).all()


def test_a_view_into_a_batch():
    batch = np.zeros((3, 4, 6), np.uint8)
    run(fill, 9, out=batch[1, :, ::2])
    assert batch.sum() == 9 * 12 and (batch[1, :, ::2] == 9).all()


def test_every_call_starts_from_zeros():
    run(fill, 255)
    out = np.full(4, 3, np.uint8)
    run(fill_first, 8, out=out)
    assert out.tolist() == [8, 0, 0, 0]


@pytest.mark.parametrize('name', ['SIGSEGV', 'SIGKILL', 'SIGABRT'])
def test_a_crash_costs_one_record(name):
    before, out = run(fill, 1), np.full(4, 3, np.uint8)
    with pytest.raises(Unreadable, match=rf'the decoder crashed \({name}\)'):
        run(send_signal, getattr(signal, name), out=out)
    assert out.tolist() == [3] * 4
    assert run(fill, 1) != before


def test_an_exit_is_a_crash():
    with pytest.raises(Unreadable, match=r'the decoder crashed \(exit status 3\)'):
        run(leave, 3)
    assert run(fill, 1)


def test_longer_than_it_may_take():
    pid, start = run(fill, 1), time.monotonic()
    with pytest.raises(Unreadable, match='the decoder took longer than 0.3 s'):
        run(sleep, 60, timeout=0.3)
    assert time.monotonic() - start < 3 and gone(pid)
    assert run(fill, 1) != pid


def test_a_child_that_was_killed_while_idle_is_no_records_fault():
    pid = run(fill, 1)
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert run(fill, 1) != pid


def test_signals_are_for_the_trainer():
    pid = run(fill, 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert run(fill, 1) == pid


@pytest.mark.parametrize(
    'error', [InputError('no library'), Unreadable('broken'), FileNotFoundError(2, 'No such file', 'a.mp4')]
)
def test_errors_keep_their_type_and_text(error):
    pid, out = run(fill, 1), np.zeros(4, np.uint8)
    with pytest.raises(type(error)) as caught:
        run(fail, error, out=out)
    assert type(caught.value) is type(error) and str(caught.value) == str(error)
    assert not out.any() and run(fill, 1) == pid


def test_errors_of_the_decoder_pass(tmp_path):
    import av

    with pytest.raises(av.InvalidDataError, match='Invalid data'):
        run(fail, av.InvalidDataError(1, 'Invalid data found', 'a.mp4'))


def test_errors_that_cannot_be_pickled():
    with pytest.raises(Unreadable, match='Stubborn: this and that'):
        run(fail_stubbornly)
    with pytest.raises((pickle.PicklingError, AttributeError), match='pickle'):
        run(unpicklable)
    assert run(fill, 1)


def test_what_cannot_be_sent_is_an_error_here():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        run(fill, lambda: 0)
    assert run(fill, 1)


def test_too_little_memory_is_the_records_fault():
    with pytest.raises(Unreadable, match='MemoryError'):
        run(fail, MemoryError('a frame of a terabyte'))


def test_a_child_that_has_grown_is_replaced(monkeypatch):
    monkeypatch.setattr(isolate._own, 'child', None, raising=False)
    monkeypatch.setattr(isolate, '_GROWTH', 64 << 20)
    first = run(fill, 1)
    assert run(take_memory, 32 << 20) == first == run(fill, 1)
    assert run(take_memory, 99 << 20) == first
    assert run(fill, 1) != first and gone(first)


def test_memory_stays_flat():
    out = np.zeros((64, 1024), np.uint8)
    pid = run(fill, 1, out=out)
    resident = lambda: int(Path(f'/proc/{pid}/statm').read_text().split()[1])  # noqa: E731
    before, handles = resident(), len(os.listdir('/proc/self/fd'))
    for _ in range(2000):
        run(fill, 1, out=out)
    assert resident() - before < 256 and len(os.listdir('/proc/self/fd')) == handles


def test_a_child_is_light():
    assert not {'jax', 'grain', 'torch'} & set(run(modules))


def test_threads_have_their_own_children_which_end_with_them():
    barrier = threading.Barrier(3)

    def work(value):
        barrier.wait(20)
        out = np.zeros((100, 100), np.uint8)
        pids = {run(fill, value, out=out) for _ in range(50)}
        assert (out == value).all() and len(pids) == 1
        return pids.pop()

    with ThreadPoolExecutor(3) as pool:
        pids = list(pool.map(work, range(1, 4)))
    assert len({*pids, run(fill, 1)}) == 4
    assert all(gone(pid) for pid in pids)


def test_no_child_can_be_started(monkeypatch):
    monkeypatch.setattr(isolate._own, 'child', None, raising=False)
    monkeypatch.setattr(isolate, '_MAIN', 'raise SystemExit(4)')
    with pytest.raises(RunError, match='no process for decoding can be started'):
        run(fill, 1)


PARENT = """
import numpy as np, sys, time, threading, types
import mim_jax
package = sys.modules['mim_jax.data'] = types.ModuleType('mim_jax.data')  # without Grain and JAX: seconds
package.__path__ = [f'{mim_jax.__path__[0]}/data']
from mim_jax.data import isolate
from tests.data.test_isolate import fill, sleep
out = np.zeros(1 << 20, np.uint8)
pids = [isolate.run(fill, 1, out=out, timeout=20)]
def busy():
    pids.append(isolate.run(fill, 1, out=np.zeros(3, np.uint8), timeout=20))
    isolate.run(sleep, 60, out=np.zeros(3, np.uint8), timeout=100)
threading.Thread(target=busy, daemon=True).start()
while len(pids) < 2: time.sleep(0.01)
print(*pids, flush=True)
time.sleep(HOW_LONG)
"""


@pytest.mark.parametrize('how', ['SIGKILL', 'normal'])
def test_children_end_with_the_trainer(how):
    shared = set(os.listdir('/dev/shm'))
    program = PARENT.replace('HOW_LONG', '0.1' if how == 'normal' else '60')
    with subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, cwd=ROOT, text=True) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and (how == 'normal' or all(is_alive(pid) for pid in pids))
        if how != 'normal':
            parent.send_signal(getattr(signal, how))
        assert parent.wait(20) == (0 if how == 'normal' else -getattr(signal, how))
    assert all(gone(pid) for pid in pids)
    assert set(os.listdir('/dev/shm')) <= shared
