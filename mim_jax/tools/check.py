"""What is in a data set, what of it cannot be read, and a config for it.

    python -m mim_jax.tools.check PATH [--channels N] [--labels COLUMN] [--workers N] [--limit N] [--json FILE]

PATH is whatever `data.path` may be. Every record is decoded. Exit status 0 = usable, 2 = nothing there or nothing readable.
"""

import argparse
import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from mim_jax.data import Source, find_splits, open_source
from mim_jax.data.image import Kind, decode, kind_of, reason
from mim_jax.errors import InputError

STATISTICS_SIDE = 256  # images are reduced to this before their mean and deviation are taken
PEEK = 256  # records that choose the channels and the type
SHOWN = 20
SIDES = (1, 16, 32, 64, 96, 128, 224, 256, 384, 512, 1024, 2048, 1 << 31)  # bins of the shorter side


@dataclass
class Found:
    """What was found in some records; adds up."""

    formats: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    channels: Counter = field(default_factory=Counter)
    bits: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width)
    bad: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    noted: list[tuple[str, str]] = field(default_factory=list)  # (name, conversion)
    moments: np.ndarray | float = 0.0  # f64[2, C]: sums over images of the mean of x and of x squared

    def __add__(self, other: 'Found') -> 'Found':
        return Found(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.tools.check', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        'path', help='a folder, glob, list file, .parquet, .npz, packed shards, tfds:NAME, hf:NAME or builtin:NAME'
    )
    parser.add_argument('--channels', type=int, default=0, help='channels to decode to; 0 = what most records have')
    parser.add_argument('--labels', default='auto', help="'auto', 'none' or a column")
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count() or 1, help='decoding processes; 0 = this one only'
    )
    parser.add_argument('--limit', type=int, default=0, help='records to look at, spread evenly; 0 = all')
    parser.add_argument('--json', default='', metavar='FILE', help='where to write the report as JSON too')
    options = parser.parse_args(argv)
    try:
        report = check(options.path, options.channels, options.labels, options.workers, options.limit)
    except InputError as error:
        print(f'mim_jax: {error}', file=sys.stderr)
        return 2
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + '\n')
    print(text(report))
    return 0


def check(path: str, channels: int = 0, labels: str = 'auto', workers: int = 0, limit: int = 0) -> dict:
    """The report on the records at `path` (those to train on, where it has splits); see `text` for how it reads.

    Raises:
        InputError: nothing there, or no readable image.
    """
    train, validation = find_splits(path)
    source = open_source(train, labels)
    rows = np.arange(len(source))
    if limit and limit < len(rows):
        rows = rows[:: -(-len(rows) // limit)]
    usual, bits = _common(source, rows[:: -(-len(rows) // PEEK)])
    channels = channels or usual
    dtype = {8: 'uint8', 16: 'uint16'}.get(bits, 'float32')
    found = _scan(source, rows, channels, dtype, workers)
    if not found.sizes:
        name, why = found.bad[0]
        raise InputError(f'no readable record in {path}: all of {len(rows)} records are bad, as {name} ({why})')
    return _report(path, source, validation, len(rows), channels, dtype, found)


def _common(source: Source, rows: np.ndarray) -> tuple[int, int]:
    """Channels and bits of most of some records."""
    kinds = []
    for row in rows:
        try:
            kinds.append(kind_of(source[int(row)].data))
        except InputError:
            raise
        except Exception:  # the scan meets the same record again, and lists it with its reason
            continue
    most = Counter((_channels(kind), kind.bits) for kind in kinds)
    return most.most_common(1)[0][0] if most else (3, 8)


def _channels(kind: Kind) -> int:
    """Channels to train on: an array's own; gray or RGB of an image, for its alpha says little and a palette is colour."""
    if kind.mode.startswith(('uint', 'float', 'bool')):
        return kind.channels
    return 1 if kind.channels <= 2 and kind.mode != 'P' else 3


def _scan(source: Source, rows: np.ndarray, channels: int, dtype: str, workers: int) -> Found:
    look = partial(_look, source, channels, dtype)
    parts = np.array_split(rows, max(1, min(len(rows) // 16, 8 * max(1, workers))))
    if workers > 1 and len(rows) > 2000:
        with ProcessPoolExecutor(workers, get_context('spawn')) as pool:
            return sum(pool.map(look, parts), Found())
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return sum(pool.map(look, parts), Found())


def _look(source: Source, channels: int, dtype: str, rows: np.ndarray) -> Found:
    """Decodes some records."""
    found = Found()
    for row in rows:
        try:
            record = source[int(row)]
            kind = kind_of(record.data)
            pixels = decode(
                record.data, channels=channels, dtype=dtype, canvas=(STATISTICS_SIDE, STATISTICS_SIDE), min_side=2
            )
        except InputError:
            raise
        except Exception as error:
            found.bad.append((source.name(int(row)), reason(error)))
            continue
        for counter, value in (
            (found.formats, kind.format),
            (found.modes, kind.mode),
            (found.channels, kind.channels),
            (found.bits, kind.bits),
        ):
            counter[value] += 1
        found.labels[record.label] += 1
        found.notes.update(pixels.notes)
        if len(found.noted) < SHOWN:
            found.noted += [(record.name, note) for note in pixels.notes]
        found.sizes.append(pixels.original)
        values = pixels.array.reshape(-1, channels).astype(np.float64)
        values /= 1 if dtype == 'float32' else np.iinfo(dtype).max
        found.moments = found.moments + np.stack([values.mean(0), np.square(values).mean(0)])
    return found


def _report(path: str, source: Source, validation: str, looked: int, channels: int, dtype: str, found: Found) -> dict:
    good = len(found.sizes)
    mean, square = found.moments / good  # each image counts the same, as its crops do in training
    std = np.sqrt(np.maximum(square - mean**2, 0))
    sizes = np.array(found.sizes)
    short = sizes.min(1)
    names = source.class_names or [str(i) for i in range(source.num_classes)]
    report = dict(
        path=path,
        records=len(source),
        looked_at=looked,
        readable=good,
        unreadable=[dict(name=name, reason=why) for name, why in found.bad],
        validation=validation,
        formats=dict(found.formats.most_common()),
        modes=dict(found.modes.most_common()),
        channels=dict(found.channels.most_common()),
        bits=dict(found.bits.most_common()),
        height=dict(min=int(sizes[:, 0].min()), median=int(np.median(sizes[:, 0])), max=int(sizes[:, 0].max())),
        width=dict(min=int(sizes[:, 1].min()), median=int(np.median(sizes[:, 1])), max=int(sizes[:, 1].max())),
        shorter_side={
            _bin(low, high): int(((low <= short) & (short < high)).sum())
            for low, high in zip(SIDES, SIDES[1:], strict=False)
        },
        mean=[float(f'{x:.4g}') for x in mean],
        std=[float(f'{x:.4g}') for x in std],
        classes={name: found.labels[i] for i, name in enumerate(names)},
        unlabelled=found.labels[-1],
        conversions=dict(found.notes.most_common()),
        converted=[dict(name=name, conversion=note) for name, note in found.noted[:SHOWN]],
    )
    report['shorter_side'] = {key: count for key, count in report['shorter_side'].items() if count}
    return report | dict(config=_config(report, sizes, channels, dtype))


def _bin(low: int, high: int) -> str:
    return f'{low}-{high - 1}' if high < 1 << 31 else f'{low}+'


def _config(report: dict, sizes: np.ndarray, channels: int, dtype: str) -> dict:
    """Overrides that suit the records: crops no larger than half of them can fill, batches that see an epoch in a few steps."""
    side = int(np.median(sizes.min(1)))
    if (sizes == sizes[0]).all() and sizes.max() <= 64:
        image, canvas = tuple(map(int, sizes[0])), tuple(map(int, sizes[0]))
    else:
        image = (224, 224) if side >= 224 else (max(8, side // 16 * 16 or 8),) * 2
        canvas = tuple(int(min(-(-most // 8) * 8, 2 * edge)) for most, edge in zip(sizes.max(0), image, strict=True))
        canvas = tuple(max(edge, room) for edge, room in zip(image, canvas, strict=True))
    batch = min(1024, max(8, 1 << int(np.log2(max(1, report['readable'] / 8)))))
    std = tuple(max(x, 1e-4) for x in report['std'])
    return dict(path=report['path'], image_size=image, canvas=canvas, channels=channels, dtype=dtype,
                mean=tuple(report['mean']), std=std, batch_size=batch)  # fmt: skip


def overrides(config: dict) -> str:
    """The config as options for the command line."""
    return ' \\\n'.join(
        f"  --config.data.{key}='{value}'" if isinstance(value, (tuple, str)) else f'  --config.data.{key}={value}'
        for key, value in config.items()
    )


def text(report: dict) -> str:
    """The report for people."""

    def counts(values: dict) -> str:
        return ', '.join(f'{key} {count}' for key, count in values.items()) or '-'

    def sides(name: str) -> str:
        return '{min} / {median} / {max}'.format(**report[name])

    lines = [
        f'{report["path"]}: {report["records"]} records, {report["looked_at"]} looked at, {report["readable"]} readable, {len(report["unreadable"])} not',
        f'  validation      {report["validation"] or "none found; data.val_path or data.holdout gives one"}',
        f'  formats         {counts(report["formats"])}',
        f'  modes           {counts(report["modes"])}',
        f'  channels        {counts(report["channels"])}',
        f'  bits            {counts(report["bits"])}',
        f'  height          {sides("height")}  (min / median / max)',
        f'  width           {sides("width")}',
        f'  shorter side    {counts(report["shorter_side"])}',
        f'  mean            {report["mean"]}',
        f'  std             {report["std"]}',
        f'  classes         {_classes(report)}',
        f'  conversions     {counts(report["conversions"])}',
    ]
    lines += [f'    {entry["name"]}: {entry["conversion"]}' for entry in report['converted']]
    lines += [f'  unreadable      {len(report["unreadable"])}']
    lines += [f'    {entry["name"]}: {entry["reason"]}' for entry in report['unreadable'][:SHOWN]]
    if len(report['unreadable']) > SHOWN:
        lines.append(f'    ... and {len(report["unreadable"]) - SHOWN} more: --json=FILE lists all')
    return '\n'.join(
        [
            *lines,
            '',
            'A config for it, to be added to python -m mim_jax.main --config=... --workdir=...',
            overrides(report['config']),
        ]
    )


def _classes(report: dict) -> str:
    classes = report['classes']
    if not classes:
        return 'none (unlabelled)'
    shown = ', '.join(f'{name} {count}' for name, count in list(classes.items())[:10])
    more = f', ... (smallest {min(classes.values())}, largest {max(classes.values())})' if len(classes) > 10 else ''
    return f'{len(classes)}: {shown}{more}' + (f'; unlabelled {report["unlabelled"]}' if report['unlabelled'] else '')


if __name__ == '__main__':
    sys.exit(main())
