"""The data of a run: what it trains on, what it is evaluated on, and the book of records that could not be read."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np

from mim_jax import build, hosts, record
from mim_jax.data import pipeline
from mim_jax.data.bad_samples import Bad, Report
from mim_jax.data.sources import Subset, open_source, open_splits
from mim_jax.errors import InputError
from mim_jax.evals.data import LabelledData, evenly

NAMED = 1000  # records whose names hosts compare


def check(config) -> None:
    """Looks whether the paths exist, before anything slow.

    Raises:
        InputError: one does not.
    """
    for path in filter(None, (config.data.path, config.data.val_path)):
        if not set(path) & set(':*?[') and not Path(path).expanduser().exists():
            open_source(path)  # tells the nearest name that does exist


def settle(config, workdir: Path) -> None:
    """Fills in what the data decide: of `data.reader` the alphabet of a text, the vocabulary of shards; of `data` size and moments of latents.

    An alphabet stays what it was: that of WORKDIR/config.json counts, else that of the run `init` names, else that of the training
    records.

    Raises:
        InputError: the vocabulary is not that of the checkpoints in `workdir`, or there are no such data.
    """
    c, options = config.data, config.data.reader.to_dict()
    reader, saved = build.find('data', options.pop('name', '')), record.saved(workdir)
    if options.get('tokenizer') == 'characters' and not options.get('alphabet'):
        runs = saved, record.saved(Path(config.init)) if config.init else {}
        options['alphabet'] = next(filter(None, (run.get('data.reader.alphabet') for run in runs)), '')

    def records(divide: Callable = lambda source: source):
        return open_splits(c.path, c.val_path, c.labels, c.holdout, reader.media, divide)[0]

    found = reader.settle(options, records)
    with config.unlocked():
        c.update({key: found.pop(key) for key in c.keys() & found.keys()})
        c.reader.update(options | found)
    if saved and any((workdir / 'checkpoints').glob('[0-9]*')):
        same_vocabulary(saved, record.as_saved(config), workdir)


def same_vocabulary(before: dict, now: dict, workdir: Path) -> None:
    """Compares two configs, {'data.reader.tokenizer': ...}.

    Raises:
        InputError: ids mean something else than they did.
    """
    why = f'but the checkpoints in {workdir} were trained with'
    latents = ('data.mean', 'data.std') if now['data.reader.name'] == 'LatentReader' else ()
    for key in ('data.reader.tokenizer', 'data.reader.vocab', *latents):
        if key in before and key in now and before[key] != now[key]:
            raise InputError(f'{key}={now[key]}, {why} {before[key]}: use that, or another --workdir')
    old, new = (run.get('data.reader.alphabet', '') for run in (before, now))
    if set(old) != set(new):
        more, less = (''.join(sorted(set(a) - set(b)))[:40] for a, b in ((new, old), (old, new)))
        raise InputError(
            f'data.reader.alphabet has {len(set(new))} characters, {why} {len(set(old))}: {more!r} are new, {less!r} are missing; '
            'leave it empty to go on with theirs, or use another --workdir'
        )


class Data:
    """Training and validation records of a config.

    Attributes:
        train_size: training records.
        labelled: what evaluators read.
        unlabelled: why evaluators that need labels cannot run; '' = they can.

    Args:
        config: with `data`, `seed`.
        workdir: bad records are listed in WORKDIR/bad_samples.jsonl (bad_samples.HOST.jsonl by hosts after the first).
        augment: `(key, batch, *, train) -> batch`.
        pause: called before each batch that an evaluator gets, on all hosts alike; may raise to end the evaluation.

    Raises:
        InputError: nothing there, or nothing that can be read.
    """

    def __init__(self, config, workdir: Path, augment: Callable, pause: Callable[[], None] = lambda: None):
        c, self.workdir, self._reader = config.data, workdir, partial(build.reader, config)
        self._pause = pause
        reader = self._reader()
        self.path = c.path
        opened = open_splits(c.path, c.val_path, c.labels, c.holdout, reader.media, reader.divide)
        arranged = self.train_source, self.val_source = [source and reader.arrange(source) for source in opened]
        self.train_size = len(self.train_source)
        self._view = ({'clips': 1} if 'clips' in c.reader else {}) | {**c.eval_reader}  # one row of each record
        self._workers = c.workers
        book = partial(Bad, workdir / 'bad_samples.jsonl', host=jax.process_index(), hosts=jax.process_count())
        self.bad = book(c.path, self.train_size, c.max_bad_share)
        self.unlabelled = self._why_unlabelled()
        own = self.val_source is not None
        self._val_bad = book(c.val_path or f'{c.path} (validation)', len(self.val_source), 1.0) if own else self.bad
        for source, before, book in zip(arranged, opened, (self.bad, self._val_bad), strict=True):
            book.left_out(source.skipped if source else (), len(before or ()))
        self._batch, self._clips = c.batch_size, reader.clips
        share = self._share(c.batch_size, reader)
        if share['batch_size'] != c.batch_size:
            raise InputError(
                f'data.batch_size={c.batch_size} does not divide over the hosts, {reader.clips} rows of a record together: use {share["batch_size"]}'
            )
        self._stream = partial(pipeline.batches, self.train_source, reader, seed=config.seed, **share)
        self.labelled = LabelledData(
            train=self._labelled_train,
            val=self._labelled_val,
            num_train=self.train_size,
            num_classes=self.train_source.num_classes,
            image_size=tuple(c.image_size),
            mean=tuple(c.mean),
            std=tuple(c.std),
            augment=augment,
            class_names=self.train_source.class_names,
            decode=self._decoder(reader),
        )
        self._told = False
        if hosts.several():
            self._check_same()

    def train(self, start: int) -> Iterator[tuple[dict, Report]]:
        """Endless batches from the global sample index `start` on."""
        return self._stream(start=start)

    def note(self, report: Report, writer, step: int) -> None:
        """Books what a batch reported; new bad records and, once, conversions become events.

        Raises:
            InputError, RunError: nothing readable, or too much is bad; of several hosts, `judge` sees to that.
        """
        for name, reason in self.bad.add(report):
            writer.event('bad_sample', step=step, name=name, reason=reason)
        if self.bad.seen >= self.train_size:
            self.tell(writer, step)

    def judge(self, examples: int) -> None:
        """Of several hosts: counts the bad rows of a batch, by the `examples` of all hosts that were good, so that all decide alike.

        Raises:
            InputError, RunError: nothing readable, or too much is bad.
        """
        self.bad.count(self._batch // self._clips, (self._batch - examples) // self._clips)

    def hear(self, writer, step: int) -> None:
        """Of several hosts, on the first: bad records that the others have listed become events."""
        if self.bad.hosts > 1 and self.bad.host == 0 and self.bad.bad:
            for name, reason in self.bad.look():
                writer.event('bad_sample', step=step, name=name, reason=reason)

    def tell(self, writer, step: int) -> None:
        """Once, at the end of the first epoch or of the run: what had to be converted, of several hosts by the first."""
        if not self._told:
            self._told = True
            for kind, count in self.bad.notes.items():
                writer.event('converted', step=step, conversion=kind, count=count, names=self.bad.named[kind])

    def _decoder(self, reader) -> Callable | None:
        """See `LabelledData.decode`."""
        if getattr(reader, 'vocabulary', None):
            return lambda rows: [reader.decode(ids) for ids in rows]
        told = self.train_source.tokens
        if not told.get('autoencoder'):
            return getattr(self.train_source, 'decode', None)
        from mim_jax.autoencoder import Autoencoder

        try:
            codec = Autoencoder(told['autoencoder'])
        except InputError as error:
            raise InputError(
                f'the autoencoder that made {self.path}: {error}; if it was moved, say so in index.json'
            ) from error
        mean, std = (np.asarray(told.get(name, default), np.float32) for name, default in (('mean', 0), ('std', 1)))
        as_made = (lambda rows: rows) if codec.vocab else (lambda rows: rows * std + mean)
        return lambda rows: np.asarray(codec.decode(as_made(rows).reshape(-1, *codec.shape)))

    def _check_same(self) -> None:
        """Looks whether all hosts read the same records in the same order."""
        some = [self.train_source.name(i) for i in range(0, self.train_size, -(-self.train_size // NAMED))]
        hosts.check_same(
            f'the data at {self.path}',
            training_records=self.train_size,
            validation_records=len(self.val_source or ()),
            classes=self.train_source.num_classes or 0,
            checksum_of_names=zlib.crc32('\n'.join(some).encode()) >> 1,
        )

    def _why_unlabelled(self) -> str:
        if not self.train_source.num_classes:
            return f'{self.path} has no labels'
        if self.val_source is None:
            return f'{self.path} has no validation records: set data.val_path or data.holdout'
        return '' if self.val_source.num_classes else 'the validation records have no labels'

    def _labelled_train(
        self,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        steps: int | None = None,
        reader: Mapping = {},
    ) -> Iterator[dict]:
        source, reader = self.train_source, self._reader(**self._view | dict(reader))
        if not shuffle:
            return self._noted(pipeline.one_pass(source, reader, **self._share(batch_size, reader)), self.bad)
        steps = steps or max(self.train_size * reader.clips // batch_size, 1)
        stream = pipeline.batches(source, reader, seed=seed, steps=steps, **self._share(batch_size, reader))
        return self._noted(stream, self.bad)

    def _labelled_val(self, batch_size: int, reader: Mapping = {}, count: int = 0) -> Iterator[dict]:
        source, reader = self.val_source or self.train_source, self._reader(**self._view | dict(reader))
        source = Subset(source, evenly(len(source), count)) if count else source
        return self._noted(pipeline.one_pass(source, reader, **self._share(batch_size, reader)), self._val_bad)

    def _share(self, batch_size: int, reader) -> dict:
        """Options of the pipeline: this host's rows of a batch, those of its devices where there is a mesh."""
        size, rows = hosts.share(jax.sharding.get_mesh()).of(batch_size, reader.clips)
        return dict(batch_size=size, rows=rows.tolist(), workers=self._workers)

    def _noted(self, batches: Iterator, book: Bad) -> Iterator[dict]:
        for batch, report in batches:
            self._pause()
            book.add(report)
            yield batch
