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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import grain
import numpy as np
from absl import flags
from grain.experimental import index_shuffle

from mim_jax.data.bad_samples import Report
from mim_jax.data.image import DTYPES, decode, reason
from mim_jax.data.sources import Source
from mim_jax.errors import InputError, RunError

Batch = dict[str, np.ndarray]
_TABLE = 1 << 24  # records whose order is kept as a table, which costs less than a small image does
_CHUNKS = 4  # pieces of a batch for each thread: few enough to cost nothing, enough to keep all of them busy


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    steps: int | None = None,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    channels: int = 3,
    dtype: str = 'uint8',
    canvas: tuple[int, int],
    min_side: int = 2,
) -> Iterator[tuple[Batch, Report]]:
    """Endless epochs, each in its own order: this host's rows of each global batch, and what happened to them.

    Args:
        source: the records.
        batch_size: rows of a batch over all hosts; may be larger than the source.
        seed: of the order.
        start: global sample index of the first row; `start + steps * batch_size` is where to go on.
        steps: batches to give; None = without end.
        shuffle: False = epochs in the order of the source.
        process_index, process_count: this host among the hosts.
        workers: decoding processes; 0 = threads of this process.
        channels, dtype, canvas, min_side: as `image.decode`.

    Returns:
        Iterator of (batch, report): image dtype[B, *canvas, C] with zeros beyond size i32[B, 2], label i32[B], valid bool[B];
        a record that cannot be decoded leaves a row of zeros with valid=False. Closing it ends the workers.

    Raises:
        InputError: a batch that the hosts cannot share, or an unknown dtype.
    """
    order = partial(shuffled, size=len(source), seed=seed) if shuffle else partial(_cyclic, size=len(source))
    collate = Collate(source, order, start, _local(batch_size, process_index, process_count), batch_size,
                      channels, dtype, canvas, min_side, _threads(workers))  # fmt: skip
    return _run(collate, sys.maxsize if steps is None else steps, workers)


def one_pass(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    channels: int = 3,
    dtype: str = 'uint8',
    canvas: tuple[int, int],
    min_side: int = 2,
) -> Iterator[tuple[Batch, Report]]:
    """Every record once, in the order of the source; the last batch is filled up with rows of valid=False.

    Arguments, result and errors as `batches`.
    """
    order = partial(_once, size=len(source))
    collate = Collate(source, order, 0, _local(batch_size, process_index, process_count), batch_size,
                      channels, dtype, canvas, min_side, _threads(workers))  # fmt: skip
    return _run(collate, -(-len(source) // batch_size), workers)


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


def _local(batch_size: int, process_index: int, process_count: int) -> range:
    """This host's rows of a global batch."""
    rows, rest = divmod(batch_size, process_count)
    if rest or not rows:
        raise InputError(
            f'data.batch_size={batch_size} does not divide by the {process_count} hosts: take a multiple of {process_count}'
        )
    return range(process_index * rows, (process_index + 1) * rows)


def _threads(workers: int) -> int:
    return 1 if workers else len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix='decode')


class Collate:
    """The batch of a step; picklable, the same in every process."""

    def __init__(self, source, order, start, local, batch_size, channels, dtype, canvas, min_side, threads):
        if dtype not in DTYPES:
            raise InputError(f'data.dtype={dtype}: it has to be one of {", ".join(DTYPES)}')
        self.source, self.order, self.start, self.local, self.stride = source, order, start, local, batch_size
        self.shape, self.dtype, self.threads = (*canvas, channels), dtype, threads
        self.decode = partial(decode, channels=channels, dtype=dtype, canvas=tuple(canvas), min_side=min_side)

    def __call__(self, step: int) -> tuple[Batch, Report]:
        rows, report = len(self.local), Report()
        batch = dict(image=np.zeros((rows, *self.shape), self.dtype), size=np.zeros((rows, 2), np.int32),
                     label=np.full(rows, -1, np.int32), valid=np.zeros(rows, bool))  # fmt: skip
        first = self.start + step * self.stride + self.local.start
        fill = partial(self._fill, batch, report, first)
        if self.threads == 1:
            report.seen = fill(range(rows))
        else:
            size = max(1, rows // (self.threads * _CHUNKS))
            chunks = (range(i, min(i + size, rows)) for i in range(0, rows, size))
            report.seen = sum(_pool(self.threads).map(fill, chunks))
        report.bad.sort()
        report.notes.sort()
        return batch, report

    def _fill(self, batch: Batch, report: Report, first: int, rows: range) -> int:
        """Decodes straight into rows of the batch: a bad record does not move those after it. Gives how many it read."""
        image, size, label, valid = batch['image'], batch['size'], batch['label'], batch['valid']
        seen = 0
        for row in rows:
            index = self.order(first + row)
            if index is None:
                break
            seen += 1
            try:
                name, data, known = self.source[index]
                pixels = self.decode(data)
            except (InputError, MemoryError):
                raise
            except Exception as error:  # Pillow raises nearly anything on a broken file; the report keeps what and why
                report.bad.append((self.source.name(index), reason(error)))
                continue
            height, width = pixels.array.shape[:2]
            image[row, :height, :width] = pixels.array
            size[row, 0], size[row, 1], label[row], valid[row] = height, width, known, True
            if pixels.notes:
                report.notes.extend((name, kind) for kind in pixels.notes)
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
