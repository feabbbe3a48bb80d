"""Calls in a child process: what crashes or hangs there costs one record, not the run.

A child is a bare interpreter, not one of `multiprocessing`, which would import the trainer's main module, and could not be
started by a worker that is daemonic itself.
"""

import ctypes
import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import accumulate
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from mim_jax.data.image import Unreadable, reason
from mim_jax.errors import RunError

_GROWTH = 512 << 20  # bytes of memory that a child may have gained since its first call
_START = 120.0  # seconds
_ALIGNED = 64  # bytes
# the package without its __init__, which imports Grain and with it JAX: seconds and much memory for each child
_MAIN = """
import sys, types
sys.path[:] = sys.argv[5:]
import mim_jax
package = sys.modules['mim_jax.data'] = types.ModuleType('mim_jax.data')
package.__path__ = [f'{mim_jax.__path__[0]}/data']
from mim_jax.data import isolate
isolate.serve(*map(int, sys.argv[1:5]))
"""
_own = threading.local()


def run(function: Callable, *args: Any, timeout: float) -> Any:
    """`function(*args)` in a child process of the calling thread.

    Args:
        function: found by its module and name, not of `__main__`; it and `args` are pickled.
        timeout: seconds.

    Returns:
        What the function returns, pickled, but for the data of contiguous NumPy arrays in it: these are views of memory
        shared with the child, which this thread's next call may write over. Copy what has to last longer.

    Raises:
        Unreadable: the child crashed, ran out of memory or of time.
        RunError: no child can be started.
        Exception: what the function raised, as Unreadable where it cannot be pickled.
    """
    child = getattr(_own, 'child', None)
    if child is None or child.ended():
        child = _own.child = _Child()
    try:
        return child.call(function, args, timeout)
    finally:
        if child.spent:
            child.end()
            _own.child = None


class _Child:
    """A process, the pipe to it and the memory shared with it; all end with this object."""

    def __init__(self):
        try:
            self.pipe, theirs = Pipe()
            self.memory, self.spent = _memory(), False
            self.process = _start(theirs.fileno(), self.memory)
        except OSError as error:
            raise RunError(f'no process for decoding can be started ({error})') from error
        theirs.close()
        self.shared = _Shared(self.memory)
        self.end = weakref.finalize(self, _end, self.process, self.pipe, self.memory)
        try:
            if not self.pipe.poll(_START):
                raise EOFError
            self.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            self.end()
            raise RunError(f'no process for decoding can be started (status {self.process.returncode})') from error

    def ended(self) -> bool:
        """It was killed while it had nothing to do, which is no record's fault."""
        return self.process.poll() is not None

    def call(self, function: Callable, args: tuple, timeout: float) -> Any:
        """As `run`; `spent` says whether the child is of no more use."""
        request = pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)
        self.spent = True  # until there is an answer, also where this thread is interrupted
        try:
            self.pipe.send_bytes(request)
            if not self.pipe.poll(timeout):
                raise Unreadable(f'the decoder took longer than {timeout:g} s')
            spent, failed, value, sizes = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise Unreadable(f'the decoder crashed ({self._death()})') from error
        self.spent = spent
        value = pickle.loads(value, buffers=self.shared.pieces(sizes))
        if failed:
            raise value
        return value

    def _death(self) -> str:
        """SIGSEGV, or the exit status."""
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return 'closed its pipe'
        return signal.Signals(-status).name if status < 0 else f'exit status {status}'


class _Shared:
    """One side's view of the shared memory, which only grows."""

    def __init__(self, memory: int):
        self.memory, self.view = memory, memoryview(bytearray())

    def pieces(self, sizes: Sequence[int]) -> list[memoryview]:
        """Room for that many bytes each, one after another from the beginning."""
        starts = [0, *accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]
        if starts[-1] > len(self.view):
            if starts[-1] > os.fstat(self.memory).st_size:
                os.ftruncate(self.memory, starts[-1])
            self.view = memoryview(mmap.mmap(self.memory, starts[-1]))
        return [self.view[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _start(pipe: int, memory: int) -> subprocess.Popen:
    numbers = (os.getpid(), pipe, memory, _GROWTH)
    return subprocess.Popen(
        [sys.executable, '-c', _MAIN, *map(str, numbers), *sys.path],
        stdin=subprocess.DEVNULL,
        pass_fds=(pipe, memory),
        env=os.environ | dict(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1'),
    )


def _end(process: subprocess.Popen, pipe: Connection, memory: int) -> None:
    process.kill()
    process.wait()
    pipe.close()
    os.close(memory)


def _memory() -> int:
    """A file without a name, so that nothing can be left behind."""
    if hasattr(os, 'memfd_create'):
        return os.memfd_create('frames')
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def serve(parent: int, pipe: int, memory: int, growth: int) -> None:
    """The child's life: calls until the pipe closes. Signals are for the trainer, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _follow(parent)
    pipe, shared, first = Connection(pipe), _Shared(memory), None
    pipe.send_bytes(b'ready')
    while True:
        try:
            request = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        answer = _answer(request, shared)
        used = _resident()
        first = used if first is None else first
        pipe.send((used > first + growth, *answer))


def _answer(request: bytes, shared: _Shared) -> tuple[bool, bytes, list[int]]:
    """(failed, the pickled value or error, bytes of each of its arrays in the shared memory) of a call."""
    try:
        function, args = pickle.loads(request)
        buffers = []
        value = pickle.dumps(function(*args), protocol=5, buffer_callback=buffers.append)
        arrays = [buffer.raw() for buffer in buffers]
        sizes = [array.nbytes for array in arrays]
        for piece, array in zip(shared.pieces(sizes), arrays, strict=True):
            piece[:] = array
        return False, value, sizes
    except Exception as error:
        return True, pickle.dumps(_portable(error), pickle.HIGHEST_PROTOCOL), []


def _follow(parent: int) -> None:
    """Where the trainer or the thread of this child ends, be it by SIGKILL, this process goes too, whatever it does."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, if the other side can have it; too little memory for a record is the record's fault."""
    if isinstance(error, MemoryError):
        return Unreadable(reason(error))
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # any class may refuse in its own way
        return Unreadable(reason(error))


def _resident() -> int:
    """Bytes of memory of this process alone."""
    try:
        with open('/proc/self/statm') as file:
            _, resident, shared = map(int, file.read().split()[:3])
    except OSError:
        return 0
    return (resident - shared) * mmap.PAGESIZE
