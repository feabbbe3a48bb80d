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


def pid():
    return os.getpid()


def full(shape, value, dtype='uint8'):
    return np.full(shape, value, dtype)


def many():
    """Arrays of all sorts, deep in an answer."""
    grid = np.arange(12, dtype=np.int16).reshape(3, 4)
    some = [np.arange(5.0), np.zeros((0, 3), np.float32), np.array(7), np.ones(3, np.uint8), np.full((700, 1000), 2.5)]
    return dict(arrays=[*some, grid, grid.T], inside=(grid[:, ::2], np.array(['a', None])), rest=('text', b'bytes'))


def nothing():
    return np.zeros((2, 0), np.uint8)


def send_signal(number):
    os.kill(os.getpid(), number)


def leave(status):
    os._exit(status)


def sleep(seconds):
    time.sleep(seconds)


def fail(error):
    raise error


class Stubborn(Exception):
    """Cannot be made again from its pickle."""

    def __init__(self, one, two):
        super().__init__(f'{one} and {two}')


def fail_stubbornly():
    raise Stubborn('this', 'that')


def take_memory(size):
    take_memory.kept = np.ones(size, np.uint8)
    return os.getpid()


def modules():
    return sorted(sys.modules)


def unpicklable():
    return lambda: 0


def run(function, *args, timeout=20.0):
    return isolate.run(function, *args, timeout=timeout)


def shared_bytes():
    """Of this thread's child."""
    return os.fstat(isolate._own.child.memory).st_size


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


def test_results_come_back():
    assert run(pid) != os.getpid()
    for dtype in (np.uint8, np.float32, np.int64):
        array = run(full, (2, 3), 5, dtype)
        assert array.dtype == dtype and array.tolist() == [[5] * 3] * 2


def test_one_child_for_many_calls():
    assert len({run(pid) for _ in range(300)}) == 1


def test_arrays_large_and_small_in_turn():
    for k, shape in enumerate([(3,), (700, 1000), (2, 2), (), (0,), (900, 2000), (3, 0, 2), (5, 5)]):
        array = run(full, shape, k, np.float32)
        assert array.shape == shape and (array == k).all()


def test_several_arrays_and_an_empty_one_in_one_answer():
    (arrays, inside, rest), want = run(many).values(), many()
    for array, other in zip([*arrays, *inside], [*want['arrays'], *want['inside']], strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)
    assert rest == ('text', b'bytes')
    assert all(array.ctypes.data % 64 == 0 for array in arrays if array.size)


def test_answers_without_arrays_need_no_shared_memory(monkeypatch):
    monkeypatch.setattr(isolate._own, 'child', None, raising=False)
    assert run(pid) and run(nothing).shape == (2, 0) and shared_bytes() == 0
    run(full, (3, 5), 1)
    assert shared_bytes() == 64


def test_an_array_is_shared_until_the_next_call():
    first = run(full, 70, 1)
    kept = first.copy()
    second = run(full, 70, 2)
    assert (kept == 1).all() and (first == 2).all() and np.shares_memory(first, second)
    second[:] = 3  # may be written
    larger = run(full, 1 << 20, 4)
    assert (larger == 4).all() and first.any()  # still mapped


@pytest.mark.parametrize('name', ['SIGSEGV', 'SIGKILL', 'SIGABRT'])
def test_a_crash_costs_one_record(name):
    before = run(pid)
    with pytest.raises(Unreadable, match=rf'the decoder crashed \({name}\)'):
        run(send_signal, getattr(signal, name))
    assert run(pid) != before


def test_an_exit_is_a_crash():
    with pytest.raises(Unreadable, match=r'the decoder crashed \(exit status 3\)'):
        run(leave, 3)
    assert run(pid)


def test_longer_than_it_may_take():
    child, start = run(pid), time.monotonic()
    with pytest.raises(Unreadable, match='the decoder took longer than 0.3 s'):
        run(sleep, 60, timeout=0.3)
    assert time.monotonic() - start < 3 and gone(child)
    assert run(pid) != child


def test_a_child_that_was_killed_while_idle_is_no_records_fault():
    child = run(pid)
    os.kill(child, signal.SIGKILL)
    assert gone(child)
    assert run(pid) != child


def test_signals_are_for_the_trainer():
    child = run(pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
    assert run(pid) == child


@pytest.mark.parametrize(
    'error', [InputError('no library'), Unreadable('broken'), FileNotFoundError(2, 'No such file', 'a.mp4')]
)
def test_errors_keep_their_type_and_text(error):
    child = run(pid)
    with pytest.raises(type(error)) as caught:
        run(fail, error)
    assert type(caught.value) is type(error) and str(caught.value) == str(error)
    assert run(pid) == child


def test_errors_of_the_decoder_pass(tmp_path):
    import av

    with pytest.raises(av.InvalidDataError, match='Invalid data'):
        run(fail, av.InvalidDataError(1, 'Invalid data found', 'a.mp4'))


def test_errors_that_cannot_be_pickled():
    with pytest.raises(Unreadable, match='Stubborn: this and that'):
        run(fail_stubbornly)
    with pytest.raises((pickle.PicklingError, AttributeError), match='pickle'):
        run(unpicklable)
    assert run(pid)


def test_what_cannot_be_sent_is_an_error_here():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        run(full, 3, lambda: 0)
    assert run(pid)


def test_too_little_memory_is_the_records_fault():
    with pytest.raises(Unreadable, match='MemoryError'):
        run(fail, MemoryError('a frame of a terabyte'))


def test_a_child_that_has_grown_is_replaced(monkeypatch):
    monkeypatch.setattr(isolate._own, 'child', None, raising=False)
    monkeypatch.setattr(isolate, '_GROWTH', 64 << 20)
    first = run(pid)
    assert run(take_memory, 32 << 20) == first == run(pid)
    assert run(take_memory, 99 << 20) == first
    assert run(pid) != first and gone(first)


def test_memory_stays_flat():
    run(full, (64, 1024), 1)
    child = run(pid)
    resident = lambda: int(Path(f'/proc/{child}/statm').read_text().split()[1])  # noqa: E731
    before, handles = resident(), len(os.listdir('/proc/self/fd'))
    for _ in range(2000):
        run(full, (64, 1024), 1)
    assert resident() - before < 256 and len(os.listdir('/proc/self/fd')) == handles


def test_a_child_is_light():
    assert not {'jax', 'grain', 'torch'} & set(run(modules))


def test_threads_have_their_own_children_which_end_with_them():
    barrier = threading.Barrier(3)

    def work(value):
        barrier.wait(20)
        assert all((run(full, (100, 100), value) == value).all() for _ in range(50))
        return run(pid)

    with ThreadPoolExecutor(3) as pool:
        pids = list(pool.map(work, range(1, 4)))
    assert len({*pids, run(pid)}) == 4
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    'name, value', [('isolate._MAIN', 'raise SystemExit(4)'), ('sys.executable', '/nowhere/python')]
)
def test_no_child_can_be_started(monkeypatch, name, value):
    monkeypatch.setattr(isolate._own, 'child', None, raising=False)
    monkeypatch.setattr(name if name.startswith('sys') else f'mim_jax.data.{name}', value)
    with pytest.raises(RunError, match='no process for decoding can be started'):
        run(pid)


PARENT = """
import sys, time, threading, types
import mim_jax
package = sys.modules['mim_jax.data'] = types.ModuleType('mim_jax.data')  # without Grain and JAX: seconds
package.__path__ = [f'{mim_jax.__path__[0]}/data']
from mim_jax.data import isolate
from tests.data.test_isolate import full, pid, sleep
kept = isolate.run(full, 1 << 20, 1, timeout=20)
pids = [isolate.run(pid, timeout=20)]
def busy():
    pids.append(isolate.run(pid, timeout=20))
    isolate.run(sleep, 60, timeout=100)
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
