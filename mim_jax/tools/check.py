"""What is in a data set, what of it cannot be read, and a config for it.

    python -m mim_jax.tools.check PATH [--media image|video] [--channels N] [--labels COLUMN] [--workers N] [--limit N]
                                       [--timeout S] [--json FILE]

PATH is whatever `data.path` may be. Every image is decoded, and of every video a few frames from first to last. Exit status 0 = usable, 2 = nothing there or nothing readable.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from mim_jax.data import Source, find_splits, open_source
from mim_jax.data.image import Kind, decode, fit, kind_of, reason
from mim_jax.data.sources import MEDIA, find_media
from mim_jax.errors import InputError, RunError
from mim_jax.tools import videos

STATISTICS_SIDE = 256  # records are reduced to this before their mean and deviation are taken
PEEK = dict(image=256, video=16)  # records that choose the channels and the type
LOOKED = 5  # frames of a video
CLIP = 16  # frames to train on
SHOWN = 20
_CLOCKS = {'frames': 'frames', 'frames/second': 'rate', 'seconds': 'duration'}
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
    clocks: list[tuple[float, float]] = field(default_factory=list)  # (frames per second, seconds) of each video
    moments: np.ndarray | float = 0.0  # f64[2, C]: sums over records of the mean of x and of x squared

    def __add__(self, other: 'Found') -> 'Found':
        return Found(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.tools.check', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        'path', help='a folder, glob, list file, .parquet, .npz, packed shards, tfds:NAME, hf:NAME or builtin:NAME'
    )
    parser.add_argument('--media', choices=MEDIA, help='found out, if it is not given')
    parser.add_argument('--channels', type=int, default=0, help='channels to decode to; 0 = what most records have')
    parser.add_argument('--labels', default='auto', help="'auto', 'none' or a column")
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count() or 1, help='decoding processes; 0 = this one only'
    )
    parser.add_argument('--limit', type=int, default=0, help='records to look at, spread evenly; 0 = all')
    parser.add_argument('--timeout', type=float, default=60.0, help='seconds that a video may take')
    parser.add_argument('--json', default='', metavar='FILE', help='where to write the report as JSON too')
    options = parser.parse_args(argv)
    try:
        given = vars(options)
        report = check(**{name: value for name, value in given.items() if name != 'json'})
    except (InputError, RunError) as error:
        print(f'mim_jax: {error}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + '\n')
    print(text(report))
    return 0


def check(
    path: str,
    media: str | None = None,
    channels: int = 0,
    labels: str = 'auto',
    workers: int = 0,
    limit: int = 0,
    timeout: float = 60.0,
) -> dict:
    """The report on the records at `path` (those to train on, where it has splits); see `text` for how it reads.

    Args:
        path: what `data.path` may be.
        media: 'image' or 'video'; None = find out.
        channels: to decode to; 0 = what most records have.
        labels: of `open_source`.
        workers: decoding processes (of videos: threads, each with a process).
        limit: records to look at, spread evenly; 0 = all.
        timeout: seconds that a video may take.

    Raises:
        InputError: nothing there, or nothing readable.
    """
    train, validation = find_splits(path)
    media = media or find_media(path)
    source = open_source(train, labels, media=media)
    rows = np.arange(len(source))
    if limit and limit < len(rows):
        rows = rows[:: -(-len(rows) // limit)]
    peek = partial(_peek, media, timeout)
    usual, bits = _common(source, peek, rows[:: -(-len(rows) // PEEK[media])])
    channels = channels or usual
    dtype = {8: 'uint8', 16: 'uint16'}.get(bits, 'float32')
    look = partial(_look_at_video, timeout) if media == 'video' else _look_at_image
    found = _scan(partial(_look, source, partial(look, channels=channels, dtype=dtype)), rows, workers, media)
    if not found.sizes:
        name, why = found.bad[0]
        raise InputError(f'no readable record in {path}: all of {len(rows)} records are bad, as {name} ({why})')
    return _report(path, media, source, validation, len(rows), channels, dtype, found)


def _common(source: Source, peek: Callable, rows: np.ndarray) -> tuple[int, int]:
    """Channels and bits of most of some records."""
    kinds = []
    for row in rows:
        try:
            kinds.append(peek(source[int(row)].data))
        except (InputError, RunError):
            raise
        except Exception:  # the scan meets the same record again, and lists it with its reason
            continue
    return Counter(kinds).most_common(1)[0][0] if kinds else (3, 8)


def _peek(media: str, timeout: float, data) -> tuple[int, int]:
    """Channels and bits of a record."""
    if media == 'video':
        return 3 if videos.look(data, channels=0, frames=1, side=64, timeout=timeout).channels > 1 else 1, 8
    kind = kind_of(data)
    return _channels(kind), kind.bits


def _channels(kind: Kind) -> int:
    """Channels to train on: an array's own; gray or RGB of an image, for its alpha says little and a palette is colour."""
    if kind.mode.startswith(('uint', 'float', 'bool')):
        return kind.channels
    return 1 if kind.channels <= 2 and kind.mode != 'P' else 3


def _scan(look: Callable, rows: np.ndarray, workers: int, media: str) -> Found:
    parts = np.array_split(rows, max(1, min(len(rows) // 16, 8 * max(1, workers))))
    if workers > 1 and len(rows) > 2000 and media == 'image':
        with ProcessPoolExecutor(workers, get_context('spawn')) as pool:
            return sum(pool.map(look, parts), Found())
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return sum(pool.map(look, parts), Found())


def _look(source: Source, look: Callable, rows: np.ndarray) -> Found:
    """Decodes some records."""
    found = Found()
    for row in rows:
        try:
            record = source[int(row)]
            kind, moments, size, notes, clock = look(record.data)
        except (InputError, RunError):
            raise
        except Exception as error:
            found.bad.append((source.name(int(row)), reason(error)))
            continue
        for counter, value in zip((found.formats, found.modes, found.channels, found.bits), kind, strict=True):
            counter[value] += 1
        found.labels[record.label] += 1
        found.notes.update(notes)
        if len(found.noted) < SHOWN:
            found.noted += [(record.name, note) for note in notes]
        found.sizes.append(size)
        found.clocks += clock
        found.moments = found.moments + moments
    return found


def _look_at_image(data, channels: int, dtype: str) -> tuple[Kind, np.ndarray, tuple[int, int], tuple[str, ...], list]:
    """What it is, its moments f64[2, C], its (height, width), conversions, and no clock."""
    kind = kind_of(data)
    pixels = decode(data, channels=channels, dtype=dtype, canvas=(STATISTICS_SIDE, STATISTICS_SIDE), min_side=2)
    values = pixels.array.reshape(-1, channels).astype(np.float64)
    values /= 1 if dtype == 'float32' else np.iinfo(dtype).max
    return kind, np.stack([values.mean(0), np.square(values).mean(0)]), pixels.original, pixels.notes, []


def _look_at_video(timeout: float, data, channels: int, dtype: str):
    """As `_look_at_image`, and its [(frames per second, seconds)]."""
    seen = videos.look(data, channels=channels, frames=LOOKED, side=STATISTICS_SIDE, timeout=timeout)
    kind, info = Kind(seen.format, seen.codec, seen.channels, 8), seen.info
    return kind, seen.moments, (info.height, info.width), (), [(info.rate, info.duration)]


def _report(
    path: str, media: str, source: Source, validation: str, looked: int, channels: int, dtype: str, found: Found
) -> dict:
    good = len(found.sizes)
    mean, square = found.moments / good  # each record counts the same, as its crops do in training
    std = np.sqrt(np.maximum(square - mean**2, 0))
    sizes = np.array(found.sizes)
    short = sizes.min(1)
    names = source.class_names or [str(i) for i in range(source.num_classes)]
    report = dict(
        path=path,
        media=media,
        records=len(source),
        looked_at=looked,
        readable=good,
        unreadable=[dict(name=name, reason=why) for name, why in found.bad],
        validation=validation,
        formats=dict(found.formats.most_common()),
        modes=dict(found.modes.most_common()),
        channels=dict(found.channels.most_common()),
        bits=dict(found.bits.most_common()),
        height=_range(sizes[:, 0]),
        width=_range(sizes[:, 1]),
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
    config = _config(report, sizes, channels, dtype)
    if media == 'video':
        rates, seconds = np.array(found.clocks).T
        report |= dict(rate=_range(rates), duration=_range(seconds), frames=_range((rates * seconds).round()))
        config |= _clips(rates, seconds)
    return report | dict(config=config)


def _range(values: np.ndarray) -> dict:
    """Whole numbers stay so."""
    values = dict(min=values.min(), median=np.median(values), max=values.max())
    return {name: int(x) if x == int(x) else float(f'{x:.4g}') for name, x in values.items()}


def _clips(rates: np.ndarray, seconds: np.ndarray) -> dict:
    """How to sample clips that most videos can fill; at one rate, where the videos have several."""
    usual = float(np.median(rates))
    several = np.quantile(rates, 0.9) > 1.1 * np.quantile(rates, 0.1)
    stride = int(np.clip(np.median(seconds) * usual // CLIP, 1, 4))
    return {
        'reader.frames': CLIP,
        'reader.stride': stride,
        'reader.fps': float(round(usual)) if several else 0.0,
        'reader.sampling': 'dense',
        'eval_reader.stride': stride,
    }


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
        fitted = np.max([fit(*size, canvas) for size in np.unique(sizes, axis=0)], 0)
        canvas = tuple(max(edge, -(-int(most) // 8) * 8) for edge, most in zip(image, fitted, strict=True))
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

    video = report['media'] == 'video'
    lines = [
        f'{report["path"]}: {report["records"]} records, {report["looked_at"]} looked at, {report["readable"]} readable, {len(report["unreadable"])} not',
        f'  validation      {report["validation"] or "none found; data.val_path or data.holdout gives one"}',
        f'  formats         {counts(report["formats"])}',
        f'  {"codecs" if video else "modes "}          {counts(report["modes"])}',
        f'  channels        {counts(report["channels"])}',
        f'  bits            {counts(report["bits"])}',
        f'  height          {sides("height")}  (min / median / max)',
        f'  width           {sides("width")}',
        *(f'  {name:15} {sides(key)}' for name, key in _CLOCKS.items() if video),
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
