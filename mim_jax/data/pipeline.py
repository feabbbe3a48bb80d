"""Records to batches, by Grain. The order of samples depends only on (seed, global sample index).

A batch is a pure function of its step, so neither the workers, nor the hosts, nor a restart can change it, and the position
in the data is one number. Nothing here touches a device.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import grain
import numpy as np
from absl import flags
from grain.experimental import index_shuffle

from mim_jax.data.bad_samples import Report
from mim_jax.data.image import reason
from mim_jax.data.reader import Reader
from mim_jax.data.sources import Source
from mim_jax.errors import InputError, RunError

Batch = dict[str, np.ndarray]
_TABLE = 1 << 24  # records whose order is kept as a table, which costs less than a small image does
_CHUNKS = 4  # pieces of a batch for each thread: few enough to cost nothing, enough to keep all of them busy


def batches(
    source: Source,
    reader: Reader,
    *,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    steps: int | None = None,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    rows: Sequence[int] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Batch, Report]]:
    """Endless epochs, each in its own order: this host's rows of each global batch, and what happened to them.

    Args:
        source: the records.
        reader: makes rows of them, `reader.clips` of each.
        batch_size: rows of a batch over all hosts; may be more than there are.
        seed: of the order, and of what the reader draws.
        start: global sample index of the first row; `start + steps * batch_size` is where to go on.
        steps: batches to give; None = without end.
        shuffle: False = epochs in the order of the source.
        process_index, process_count: this host among the hosts, which share a batch evenly and in their order.
        rows: of a batch that this host reads, where they do not; ascending.
        workers: decoding processes; 0 = threads of this process, or as many processes as cores where the reader has its own.

    Returns:
        Iterator of (batch, report): the arrays of `reader.row`, label i32[B], valid bool[B]; a record that cannot be decoded
        leaves rows of zeros with valid=False. Closing it ends the workers.

    Raises:
        InputError: a batch that the hosts or the clips of a record cannot share.
    """
    order = partial(shuffled, size=len(source), seed=seed) if shuffle else partial(_cyclic, size=len(source))
    local = _local(batch_size, process_index, process_count, reader.clips, rows)
    collate = Collate(source, reader, order, seed, start, local, batch_size, _threads(reader, workers))
    return _run(collate, sys.maxsize if steps is None else steps, 0 if reader.own_processes else workers)


def one_pass(
    source: Source,
    reader: Reader,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    rows: Sequence[int] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Batch, Report]]:
    """Every record once, in the order of the source, nothing drawn; the last batch is filled up with rows of valid=False.

    Arguments, result and errors as `batches`.
    """
    order = partial(_once, size=len(source))
    local = _local(batch_size, process_index, process_count, reader.clips, rows)
    collate = Collate(source, reader, order, None, 0, local, batch_size, _threads(reader, workers))
    return _run(collate, -(-len(source) * reader.clips // batch_size), 0 if reader.own_processes else workers)


def shuffled(sample: int, size: int, seed: int) -> int:
    """Record number of a global sample index: each epoch is another permutation."""
    epoch, index = divmod(sample, size)
    if size <= _TABLE:
        return int(_permutation(seed, epoch, size)[index])
    return index_shuffle(index, max_index=size - 1, seed=_epoch_seed(seed, epoch), rounds=4)  # in constant memory


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.RandomState(_epoch_seed(seed, epoch)).permutation(size)  # this legacy stream never changes


@lru_cache(maxsize=8)
def _epoch_seed(seed: int, epoch: int) -> int:
    """Hashed: the epochs of seed 0 are not those of seed 1 moved by one."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def _cyclic(sample: int, size: int) -> int:
    return sample % size


def _once(sample: int, size: int) -> int | None:
    return sample if sample < size else None


def _local(
    batch_size: int, process_index: int, process_count: int, clips: int, given: Sequence[int] | None
) -> Sequence:
    """This host's rows of a global batch."""
    if given is not None:
        whole = np.reshape(given, (-1, clips)) if len(given) % clips == 0 else np.ones((1, 1))
        if (whole[:, 0] % clips).any() or (whole != whole[:, :1] + np.arange(clips)).any():
            raise InputError(
                f'data.batch_size={batch_size} does not divide over the devices by the {clips} clips of a record: take a multiple of both'
            )
        return given
    rows, rest = divmod(batch_size, process_count)
    if rest or not rows:
        raise InputError(
            f'data.batch_size={batch_size} does not divide by the {process_count} hosts: take a multiple of {process_count}'
        )
    if rows % clips:
        raise InputError(
            f'data.batch_size={batch_size} does not divide by {process_count} hosts x {clips} clips of a record: take a multiple of {process_count * clips}'
        )
    return range(process_index * rows, (process_index + 1) * rows)


def _threads(reader: Reader, workers: int) -> int:
    if workers:
        return workers if reader.own_processes else 1
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix='decode')


class Collate:
    """The batch of a step; picklable, the same in every process."""

    def __init__(self, source, reader, order, seed, start, local, batch_size, threads):
        self.source, self.reader, self.order, self.seed = source, reader, order, seed
        self.start, self.local, self.stride, self.threads = start, local, batch_size, threads

    def __call__(self, step: int) -> tuple[Batch, Report]:
        rows, report = len(self.local), Report()
        batch = {key: np.zeros((rows, *shape), dtype) for key, (shape, dtype) in self.reader.row.items()}
        batch |= dict(label=np.full(rows, -1, np.int32), valid=np.zeros(rows, bool))
        samples = [
            (self.start + step * self.stride + row) // self.reader.clips for row in self.local[:: self.reader.clips]
        ]
        fill, records = partial(self._fill, batch, report, samples), len(samples)
        if self.threads == 1 and not self.reader.own_processes:
            report.seen = fill(range(records))
        else:
            size = max(1, records // (self.threads * _CHUNKS))
            chunks = (range(i, min(i + size, records)) for i in range(0, records, size))
            report.seen = sum(_pool(self.threads).map(fill, chunks))
        report.bad.sort()
        report.notes.sort()
        return batch, report

    def _fill(self, batch: Batch, report: Report, samples: Sequence[int], records: range) -> int:
        """Decodes straight into rows of the batch: a bad record does not move those after it. Gives how many it read."""
        clips, seen = self.reader.clips, 0
        for record in records:
            index = self.order(samples[record])
            if index is None:
                break
            seen += 1
            rows = slice(record * clips, (record + 1) * clips)
            try:
                name, data, known = self.source[index]
                draw = None if self.seed is None else (self.seed, samples[record])
                notes = self.reader(data, draw, {key: batch[key][rows] for key in self.reader.row})
            except (InputError, RunError, MemoryError):
                raise
            except Exception as error:  # decoders raise nearly anything on a broken file; the report keeps what and why
                report.bad.append((self.source.name(index), reason(error)))
                continue
            batch['label'][rows], batch['valid'][rows] = known, True
            if notes:
                report.notes.extend((name, kind) for kind in notes)
        return seen


def _run(collate: Collate, steps: int, workers: int) -> Iterator[tuple[Batch, Report]]:
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's processes read flags, which a notebook has none of
    dataset = grain.MapDataset.range(steps).map(collate)
    read = grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=2)
    stream = dataset.to_iter_dataset(read)
    if workers:
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1), _settle
        )
    iterator = iter(stream)
    atexit.register(iterator.close)  # where nobody closes this generator
    try:
        yield from iterator
    except RuntimeError as error:
        if 'terminated unexpectedly' not in str(error):
            raise
        raise RunError(
            f'a decoding process ended ({error}); fewer data.workers or a smaller data.canvas take less memory'
        ) from error
    finally:
        atexit.unregister(iterator.close)
        iterator.close()


def _settle(worker: int, workers: int) -> None:
    """In a new worker: signals are for the trainer, which ends it; where the trainer is killed, it goes too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
