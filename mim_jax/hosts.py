"""Several hosts as one run: whether there are several, how they meet, and what happens when one of them is lost.

`start` comes before any other use of JAX. From then on a thread looks after the others: when one is lost or has stopped, this
process ends too, within a minute, with one sentence that names it. Another one sees when steps stop coming, though all are there.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from mim_jax import roll_call
from mim_jax.errors import InputError, RunError
from mim_jax.launched import launched, place

JOIN = 300.0  # seconds to wait for the other hosts at the start
SILENCE = 20  # seconds without a heartbeat after which a host counts as lost
ROUND = 2.0  # seconds between two looks at the others
LINGER = 5.0  # seconds that a host stays after it said why it stops, so that the others hear it
SEEN = 30.0  # seconds in which a file of one host has to be there for the others
HANG = 600.0  # seconds without a step after which a host counts as hanging
SLOW = 20  # usual steps that a slow one may take, where that is more
LAST_WORDS, STEPS = 'mim_jax/last_words', 'mim_jax/steps'


class Hosts:
    """This process among others.

    Args:
        number: of this host.
        names: what to call each of them.
        address: of JAX's coordination service, which host 0 runs.
    """

    def __init__(self, number: int, names: list[str], address: str):
        self.number, self.names, self.address = number, names, address
        self.client = None  # of the service
        self.looked = time.monotonic()  # when all others were last there
        self.ending: tuple[str, int] | None = None  # sentence and status, once this process is on its way out
        self.parted = False  # from the others, at the end of a run
        self.step = 0  # the newest that began here
        self.begun: tuple[float, ...] = ()  # when it did and those before it, since the last rest
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Looks after the others until one is lost or says that it stops. On its way out it still answers theirs, or they could not read why.

        `get_live_nodes` waits for all that send heartbeats, which C++ threads do whatever Python does: a host that is slow is waited
        for, and only one that is silent is lost.
        """
        from jax.errors import JaxRuntimeError

        everyone = list(range(len(self.names)))
        while not self.parted:
            try:
                here = self.client.get_live_nodes(everyone)
                words = self.client.key_value_dir_get(LAST_WORDS)
            except JaxRuntimeError:  # host 0 is gone, with its service; what JAX says of it comes first
                time.sleep(LINGER)
                self.lost([0])
            lost = [number for number in everyone if number not in here]
            if words and not self.ending:
                self.stop_too(**json.loads(words[0][1]))
            if lost and not self.ending:
                self.lost(lost)
            self.looked = time.monotonic()
            time.sleep(ROUND)

    def lost(self, numbers: list[int]) -> None:
        """Ends this process because hosts are silent."""
        why = 'was lost: it' if len(numbers) == 1 else 'were lost: they'
        self.leave(f'{self.called(numbers)} {why} ended without a word, or the network did; the same command on all hosts goes on from the last checkpoint', 1)  # fmt: skip

    def called(self, numbers: list[int]) -> str:
        """The names of some hosts, as a sentence has them."""
        which = ' and '.join(f'host {number} ({self.names[number]})' for number in numbers[:4])
        return which + (f' and {len(numbers) - 4} more' if len(numbers) > 4 else '')

    def watch_steps(self) -> None:
        """Tells the others how far this host is, and ends this process when none of the steps that should come does.

        Only amid steps: what else a run does may take long. The third step after a rest begins when the first one is done, which is when all
        hosts are back.
        """
        from jax.errors import JaxRuntimeError

        with contextlib.suppress(JaxRuntimeError):  # host 0 is gone, with its service, as `watch` sees too
            while not self.parted:
                time.sleep(ROUND)
                step, begun = self.step, self.begun
                self.client.key_value_set(f'{STEPS}/{self.number}', str(step), allow_overwrite=True)
                if len(begun) > 2 and time.monotonic() - begun[-1] > max(HANG, SLOW * np.median(np.diff(begun))):
                    self.hang(dict(self.client.key_value_dir_get(STEPS)), time.monotonic() - begun[-1])

    def hang(self, told: dict[str, str], seconds: float) -> None:
        """Ends this process, and the others, because the run hangs: {'mim_jax/steps/0': '7'} tells by whom."""
        steps = [int(told.get(f'{STEPS}/{number}', 0)) for number in range(len(self.names))]
        behind = [number for number, step in enumerate(steps) if step == min(steps)]
        who = self.called(behind) if len(behind) < len(steps) else 'every host'
        verb = 'hang' if 1 < len(behind) < len(steps) else 'hangs'
        self.leave(f'{who} {verb}: the last step to begin there was {min(steps)}, {seconds:.0f} s ago or more; the log of each host has what it was at; '
                   'the same command on all hosts goes on from the last checkpoint', 1, tell=True, trace=True)  # fmt: skip

    def stop_too(self, number: int, text: str, status: int, trace: bool) -> None:
        """Ends this process because another one did, for the reason it gave."""
        self.leave(f'host {number} ({self.names[number]}) stopped: {text}', status, trace=trace)

    def leave(self, text: str, status: int, tell: bool = False, trace: bool = False) -> None:
        """Ends this process with a sentence, without waiting for threads that wait for others.

        Args:
            text: the sentence.
            status: of the exit.
            tell: whether the others should be told, because the reason lies here.
            trace: whether to show what all threads of all hosts are at.
        """
        if self._lock.acquire(blocking=False):
            self.ending = text, status
            if trace:
                faulthandler.dump_traceback()
            if tell and self.client:
                words = json.dumps(dict(number=self.number, text=text, status=status, trace=trace))
                with contextlib.suppress(Exception):  # host 0 may be gone, or another have been first
                    self.client.key_value_set(f'{LAST_WORDS}/first', words)
            if tell or self.number == 0:  # the service ends with host 0
                time.sleep(LINGER)
            self.end()
        time.sleep(10 * LINGER)  # another thread is at it

    def end(self) -> NoReturn:
        """Says the sentence and is gone."""
        text, status = self.ending
        if text:
            print(f'mim_jax: {text}', file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(status)

    def aborted(self, _: int) -> None:
        """JAX calls abort() when its service is silent; this way the sentence comes after JAX's own last words."""
        if self.ending:
            self.end()
        if not self.client:
            self.leave(f'JAX did not start between the hosts, see above; its service is at {self.address}', 1)
        if self.number and (time.monotonic() - self.looked > SILENCE / 2 or not self.reachable()):
            self.lost([0])
        on_abort(None)  # something else: as ever

    def reachable(self) -> bool:
        """Whether something listens where host 0 does."""
        try:
            socket.create_connection(roll_call.split(self.address), 3).close()
        except OSError:
            return False
        return True

    def part(self, status: int) -> None:
        """Waits for the others at the end of a run. All stop looking before the first one goes; host 0, which runs the service, goes last."""
        from jax.errors import JaxRuntimeError

        self.client.wait_at_barrier('mim_jax/end', 3_600_000)
        self._lock.acquire()
        self.ending, self.parted = ('', status), True
        with contextlib.suppress(JaxRuntimeError):  # all is done, whoever is lost now
            self.client.wait_at_barrier('mim_jax/parting', 60_000)
        if self.number == 0:
            time.sleep(ROUND)


_ours: Hosts | None = None  # of several hosts, once they have met


def on_abort(handler) -> None:
    """What happens when this process calls abort(): Python's own `signal` would only hear of it later, which is never."""
    signal_of_c = ctypes.CDLL(None).signal
    signal_of_c.argtypes, signal_of_c.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    if handler is None:
        signal_of_c(signal.SIGABRT, None)
        return
    on_abort.kept = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)  # C holds only its address
    signal_of_c(signal.SIGABRT, ctypes.cast(on_abort.kept, ctypes.c_void_p))


def start(config, workdir: str, mode: str = 'train', timeout: float = JOIN) -> None:
    """Makes several hosts one run, where the environment says that there are several; comes before any other use of JAX.

    Args:
        config, workdir, mode: have to be the same on all hosts.
        timeout: seconds to wait for the others.

    Raises:
        InputError: the environment says it by half, or the hosts differ.
        RunError: not all hosts have come.
    """
    global _ours
    launch = launched(os.environ)
    if launch is None:
        return
    import jax
    from jax._src import distributed

    from mim_jax import record

    facts = {name: record.version(name) for name in record.PACKAGES} | dict(workdir=str(workdir), mode=mode)
    facts |= {f'config.{key}': value for key, value in record.as_saved(config).items()}
    address, count, number, devices = place(launch, timeout)
    called = roll_call.meet(address, number, count, facts, timeout, os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', ''))
    _ours = Hosts(number, called, address)
    on_abort(_ours.aborted)
    jax.config.update(
        'jax_enable_recoverability', True
    )  # who is lost is for `watch` to say; JAX would end all in its own words
    jax.distributed.initialize(
        address, count, number, devices, initialization_timeout=60, heartbeat_timeout_seconds=SILENCE
    )
    _ours.client = distributed.global_state.client
    threading.Thread(target=_ours.watch, name='hosts', daemon=True).start()
    threading.Thread(target=_ours.watch_steps, name='steps', daemon=True).start()
    if jax.process_count() != count:
        raise RunError(f'{launch.said}, but JAX sees {jax.process_count()} processes on {jax.default_backend()}: '
                       'does each host have its own devices, and the same kind?')  # fmt: skip


def several() -> bool:
    """Whether this process is one of several hosts."""
    return _ours is not None


def moved(step: int) -> None:
    """Says that a step begins here; the next has to begin in a bounded time, unless there is a `rest` before it."""
    if _ours:
        _ours.step, _ours.begun = step, (*_ours.begun[-SLOW:], time.monotonic())


def rest() -> None:
    """Says that what comes now may take as long as it does, on all hosts."""
    if _ours:
        _ours.begun = ()


class Share(NamedTuple):
    """What of a batch is this host's.

    Attributes:
        chunks: those of its devices, ascending.
        total: chunks that the mesh cuts a batch into.
        number, count: this one among the hosts; those whose devices split the products of the same rows count as one.
    """

    chunks: tuple[int, ...]
    total: int
    number: int
    count: int

    def of(self, size: int, clips: int = 1) -> tuple[int, np.ndarray]:
        """A batch of `size` rows or, where they do not divide, a few more: its size, and the rows of this host; `clips` stay together."""
        if self.count == 1:
            return size, np.arange(size)
        if size % (self.total * clips) == 0:
            rows = np.arange(size).reshape(self.total, -1)[list(self.chunks)]
            return size, rows.ravel()
        each = -(-size // (self.count * clips)) * clips
        return each * self.count, np.arange(self.number * each, (self.number + 1) * each)


@lru_cache(maxsize=8)
def share(mesh) -> Share:
    """This host's share of a batch over a mesh, or, of an empty one, an even one.

    Raises:
        InputError: the hosts have unequal parts.
    """
    import jax

    from mim_jax.sharding import ROWS

    own, count = jax.process_index(), jax.process_count()
    if mesh.empty or count == 1:
        total = 1 if mesh.empty else mesh.shape['data'] * mesh.shape['fsdp']
        return Share((own,), count, own, count) if count > 1 else Share(tuple(range(total)), total, 0, 1)
    total, parts = mesh.shape['data'] * mesh.shape['fsdp'], {}
    for device, (cut, *_) in jax.sharding.NamedSharding(mesh, ROWS).devices_indices_map((total,)).items():
        parts.setdefault(device.process_index, set()).add(cut.start or 0)
    ways = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(map(len, ways)) != total or len(set(map(len, ways))) > 1:
        raise InputError(f'mesh.data, mesh.fsdp, mesh.model = {", ".join(map(str, mesh.shape.values()))} give some hosts more rows than others: '
                         f'choose mesh.model so that it divides the {jax.local_device_count()} devices of a host, or is a multiple of them')  # fmt: skip
    chunks = tuple(sorted(parts[own]))
    return Share(chunks, total, ways.index(chunks), len(ways))


def first(value: int) -> int:
    """What host 0 says, on all hosts; for what is looked up in files, which hosts may see at different times."""
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def check_same(of: str, **values: int) -> None:
    """Compares whole numbers over all hosts.

    Args:
        of: whose they are, for the sentence.
        values: below 2 ** 31.

    Raises:
        InputError: one differs, on all hosts alike.
    """
    if not _ours:
        return
    from jax.experimental import multihost_utils

    table = np.asarray(multihost_utils.process_allgather(np.array(list(values.values()), np.int32)))
    differ = np.argwhere(table != table[0])
    if len(differ):
        number, column = differ[0]
        what = list(values)[column].replace('_', ' ')
        raise InputError(f'{of}: {what} is {table[number, column]} on host {number} ({_ours.names[number]}) and {table[0, column]} on host 0 '
                         f'({_ours.names[0]}): all hosts have to see the same')  # fmt: skip


def check_shared(folder: Path) -> None:
    """Looks whether all hosts see what host 0 writes to a folder.

    Raises:
        InputError: one does not, on all hosts alike.
    """
    if not _ours:
        return
    from jax.experimental import multihost_utils

    mark = folder / f'.host0.{first(time.time_ns() % 2**31)}'
    if _ours.number == 0:
        mark.touch()
    multihost_utils.sync_global_devices('mim_jax: mark')
    end = time.monotonic() + SEEN
    while not (seen := mark.exists()) and time.monotonic() < end:
        os.listdir(folder)  # network file systems look again
        time.sleep(0.5)
    blind = np.flatnonzero(~np.asarray(multihost_utils.process_allgather(np.array(seen))))
    if _ours.number == 0:
        mark.unlink()
    if len(blind):
        raise InputError(f'host {blind[0]} ({_ours.names[blind[0]]}) does not see what host 0 writes to --workdir={folder}: '
                         'it has to be a folder that all hosts share')  # fmt: skip


def finish(status: int) -> int:
    """The exit status, once all hosts have come to their end."""
    if _ours:
        _ours.part(status)
        import jax

        jax.distributed.shutdown()
    return status


def wait_for_the_lost(problem: BaseException) -> None:
    """Where an error may come from another host's end, as that of a collective does, gives `watch` the time to find out."""
    own = isinstance(problem, InputError | OSError | KeyboardInterrupt)
    own |= isinstance(problem, RunError) and isinstance(problem.__cause__, OSError | None)
    if _ours and not own:
        time.sleep(SILENCE + 2 * LINGER)


def leave(text: str, status: int) -> None:
    """Of several hosts: ends this one with a sentence that the others end with too. Alone: nothing."""
    if _ours:
        _ours.leave(text, status, tell=True)
