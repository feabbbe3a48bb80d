"""Any source to ArrayRecord shards, which are fast to shuffle.

    python -m mim_jax.tools.pack SRC DST [--shards N] [--short-side PX]
        of images: [--quality Q] [--format keep|jpeg|png]
        of videos: [--fps R] [--keyframes N] [--crf Q] [--timeout S]

SRC is whatever `data.path` may be; where it has splits, DST gets train/ and val/. Records that cannot be decoded are left out,
counted and listed in index.json. Everything is read back and compared before DST appears; an existing DST is never touched.
Videos go in as they are, without --short-side, --fps, --keyframes, --crf or a start and end; else they become H.264 without sound.
"""

import argparse
import json
import os
import shutil
import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image, ImageOps

from mim_jax.data import Source, open_source, open_splits
from mim_jax.data.image import Unreadable, opened, reason, shrink
from mim_jax.data.sources import MEDIA, find_media
from mim_jax.data.sources.array_record import INDEX, VERSION, encode
from mim_jax.errors import InputError, RunError
from mim_jax.tools import videos

SHARD = 8192  # records of a shard, if --shards does not say
TIMEOUT = 600.0  # seconds that a video may take
AHEAD = 4  # records in memory for each thread
SHOWN = 20
_OPTIONS = dict(
    short_side=MEDIA,
    quality=MEDIA[:1],
    format=MEDIA[:1],
    fps=MEDIA[1:],
    keyframes=MEDIA[1:],
    crf=MEDIA[1:],
    timeout=MEDIA[1:],
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.tools.pack', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('src', help='a folder, glob, list file, .parquet, .npz, tfds:NAME, hf:NAME or builtin:NAME')
    parser.add_argument('dst', help='a folder that does not exist yet')
    parser.add_argument('--shards', type=int, default=0, help=f'files to write; 0 = one for each {SHARD} records')
    parser.add_argument('--media', choices=MEDIA, help='found out, if it is not given')
    parser.add_argument('--short-side', type=int, help='reduce what has a longer shorter side')
    parser.add_argument('--quality', type=int, help='of JPEG, where it is written anew; 90 if not given')
    parser.add_argument(
        '--format', choices=('keep', 'jpeg', 'png'), help='keep (the default) = the bytes as they are, if the size is'
    )
    parser.add_argument('--fps', type=float, help='frames a second to keep, where there are more')
    parser.add_argument('--keyframes', type=int, metavar='N', help='a key frame every N frames: fast random access')
    parser.add_argument('--crf', type=int, help="x264's quality, 0 (lossless) to 51; 20 if not given")
    parser.add_argument('--timeout', type=float, help='seconds that a video may take; 600 if not given')
    parser.add_argument('--labels', default='auto', help="'auto', 'none' or a column")
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='decoding threads')
    options = parser.parse_args(argv)
    try:
        media = options.media or find_media(options.src)
        how = _how(options, media)
        indices = pack(options.src, Path(options.dst), media, how, options.shards, options.labels, options.workers)
    except (InputError, RunError) as error:
        print(f'mim_jax: {error}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    tell(indices)
    return 0


def tell(indices: Mapping[str, Mapping]) -> None:
    """Prints what was written."""
    for folder, index in indices.items():
        size = sum(shard['bytes'] for shard in index['shards'])
        print(
            f'{folder}: {index["count"]} records in {len(index["shards"])} shards, {size / 2**20:.1f} MiB, verified; {len(index["skipped"])} left out'
        )
        for entry in index['skipped'][:SHOWN]:
            print(f'  {entry["name"]}: {entry["reason"]}')


def _how(options: argparse.Namespace, media: str) -> dict:
    """What the command line says of how records are encoded, as options of `recode` or `videos.repack`.

    Raises:
        InputError: an option of the other medium, or out of range.
    """
    given = {name: value for name, value in vars(options).items() if value is not None and name in _OPTIONS}
    for name, value in given.items():
        if media not in _OPTIONS[name]:
            raise InputError(
                f'--{name.replace("_", "-")} is for {_OPTIONS[name][0]}s, but {options.src} holds {media}s'
            )
        if not isinstance(value, str) and (value < 0 or value == 0 and name == 'timeout'):
            raise InputError(f'--{name.replace("_", "-")}={value} has to be above 0')
    return {dict(format='form').get(name, name): value for name, value in given.items()}


def recode(data: bytes | np.ndarray, *, short_side: int = 0, quality: int = 90, form: str = 'keep') -> bytes:
    """A record as it goes into a shard: reduced if its shorter side is longer than `short_side`, encoded as `form` says.

    Raises:
        Unreadable or whatever the reader raises: this record is bad.
    """
    record = opened(data)
    if isinstance(record, Image.Image):
        kind, size = record.format, record.size[::-1]
        record.load()
    else:
        kind, size = 'NPY', record.shape[:2]
    scale = short_side / min(size) if short_side else 1.0
    target = 'JPEG' if form == 'jpeg' or form == 'keep' and kind == 'JPEG' else 'PNG'
    if scale >= 1 and isinstance(data, bytes) and (form == 'keep' or kind == target):
        return data
    if isinstance(record, Image.Image):
        record = _plain(ImageOps.exif_transpose(record))
    if isinstance(record, Image.Image):
        if scale < 1:
            record = record.resize(
                tuple(max(1, round(side * scale)) for side in record.size), Image.Resampling.BICUBIC, reducing_gap=3.0
            )
        return _save(record, target, quality)
    if scale < 1:
        record = shrink(
            record[..., None] if record.ndim == 2 else record, tuple(max(1, round(side * scale)) for side in size)
        )
    return _save_array(record, form, quality)


def _plain(image: Image.Image) -> Image.Image | np.ndarray:
    """Without palette or CMYK; deeper than 8 bits as an array."""
    if image.mode.startswith(('I', 'F')):
        array = np.asarray(image)
        return array.astype(np.uint16) if array.dtype.kind in 'ui' and array.max() < 1 << 16 else array
    if image.mode in ('L', 'RGB', 'RGBA'):
        return image
    transparent = 'A' in image.mode or 'transparency' in image.info
    return image.convert('RGBA' if transparent else 'L' if image.mode == '1' else 'RGB')


def _save(image: Image.Image, kind: str, quality: int) -> bytes:
    file = BytesIO()
    if kind == 'JPEG':
        image.convert('L' if image.mode == 'L' else 'RGB').save(file, 'JPEG', quality=quality)
    else:
        image.save(file, 'PNG')
    return file.getvalue()


def _save_array(array: np.ndarray, form: str, quality: int) -> bytes:
    """As NPY, unless an image format is asked for."""
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if form != 'keep':
        channels = 1 if array.ndim == 2 else array.shape[-1]
        if array.dtype == np.uint8 and channels in (1, 3, 4):
            return _save(Image.fromarray(array), form.upper(), quality)
        if form == 'jpeg' or array.dtype != np.uint16 or channels != 1:
            raise Unreadable(f'{array.dtype} of {channels} channels cannot be {form.upper()}: use --format=keep')
        return _save(Image.fromarray(array), 'PNG', quality)
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def pack(
    src: str,
    dst: Path,
    media: str = 'image',
    how: Mapping = {},
    shards: int = 0,
    labels: str = 'auto',
    workers: int = 1,
) -> dict[str, dict]:
    """Writes `dst`, and gives the index of each folder in it.

    Args:
        src: what `data.path` may be.
        media: 'image' or 'video'.
        how: options of `recode`, or of `videos.repack`.
        shards: files to write; 0 = by the number of records.
        labels: of `open_source`.
        workers: threads.

    Raises:
        InputError: nothing readable at `src`, or `dst` exists.
        RunError: what was read back is not what was written, or the disk is full.
    """
    new(dst)
    return write(open_splits(src, labels=labels, media=media), dst, src, _way(media, how), shards, workers)


def new(dst: Path) -> None:
    """Raises InputError where `dst` exists."""
    if dst.exists():
        raise InputError(f'{dst} exists already: give a name that does not')


def write(
    splits: tuple[Source, Source | None], dst: Path, src: str, way: 'Way', shards: int = 0, workers: int = 1
) -> dict[str, dict]:
    """Writes training and validation records (None = there are no such) as shards, reads them back, and gives the index of each folder.

    Several processes may pack at once: each writes beside `dst` under a name of its own, and the first to finish gets the name.

    Args:
        src: where the records come from, for messages and the index.
        way: how they are packed.

    Raises:
        InputError: nothing readable.
        RunError: what was read back is not what was written, or the disk is full.
    """
    parts = dict(train=splits[0], val=splits[1]) if splits[1] is not None else {'': splits[0]}
    work = dst.with_name(f'.{dst.name}.{os.getpid()}.partial')
    try:
        work.mkdir(parents=True)
        written = {name: _write(source, work / name, src, way, shards, workers) for name, source in parts.items()}
        for name, checks in written.items():
            _verify(work / name, checks, way, workers)
        indices = {str(dst / name): json.loads((work / name / INDEX).read_text()) for name in parts}
        os.rename(work, dst)
    except OSError as error:
        raise RunError(f'cannot write {dst}: {error}') from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return indices


class Way(NamedTuple):
    """How the records of a medium are packed and looked at."""

    media: str
    form: Callable  # (data of a record) -> bytes
    look: Callable[[bytes], object]  # decodes what was packed
    channels: Callable[[bytes], int] | None = None  # None = the index has no word of them
    index: Mapping = {}  # what it says besides


def _way(media: str, how: Mapping) -> Way:
    if media == 'image':
        return Way(media, partial(recode, **how), _load, _channels)
    how = dict(timeout=TIMEOUT) | dict(how)  # videos have the channels that a reader asks for
    return Way(media, partial(videos.repack, **how), partial(videos.first_frame, timeout=how['timeout']))


def _channels(data: bytes) -> int:
    kind = opened(data)
    return len(kind.getbands()) if isinstance(kind, Image.Image) else 1 if kind.ndim == 2 else kind.shape[-1]


def _load(data: bytes) -> None:
    """Decodes an image."""
    kind = opened(data)
    if isinstance(kind, Image.Image):
        kind.load()


def _write(source: Source, folder: Path, src: str, way: Way, shards: int, workers: int) -> np.ndarray:
    """Shards and index of one folder; gives the checksum u32[n] of each record written."""
    folder.mkdir(exist_ok=True)
    count = shards or -(-len(source) // SHARD)
    bounds = np.linspace(0, len(source), min(count, len(source)) + 1).astype(int)
    checks, skipped, channels, entries = [], [dict(name=n, reason=why) for n, why in source.skipped], Counter(), []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for number, (first, last) in enumerate(zip(bounds, bounds[1:], strict=False)):
            file = folder / f'{number:05}-of-{len(bounds) - 1:05}.array_record'
            writer, before = ArrayRecordWriter(str(file), 'group_size:1'), len(checks)
            prepared = _in_order(pool, partial(_prepare, source, way), range(first, last), AHEAD * workers)
            for packed, bands, bad in prepared:
                if bad:
                    skipped.append(bad)
                    continue
                writer.write(packed)
                checks.append(zlib.crc32(packed))
                channels[bands] += 1
            writer.close()
            entries.append(dict(file=file.name, count=len(checks) - before, bytes=file.stat().st_size))
    if not checks:
        raise InputError(
            f'no readable record in {src}: all of {len(source) + len(source.skipped)} records are bad, as {skipped[0]["name"]} ({skipped[0]["reason"]})'
        )
    index = dict(version=VERSION, count=len(checks), media=way.media, num_classes=source.num_classes, class_names=source.class_names,
                 channels=dict(channels.most_common()), source=src, shards=entries, skipped=skipped) | way.index  # fmt: skip
    if not way.channels:
        del index['channels']
    (folder / INDEX).write_text(json.dumps(index, indent=1) + '\n')
    return np.array(checks, np.uint32)


def _in_order(pool: ThreadPoolExecutor, function: Callable, rows: Sequence[int], ahead: int) -> Iterator:
    """`pool.map` that is never more than `ahead` results ahead of who takes them."""
    running = deque()
    for row in rows:
        running.append(pool.submit(function, row))
        if len(running) >= max(1, ahead):
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _prepare(source: Source, way: Way, row: int) -> tuple[bytes, int, dict | None]:
    """A packed record and its channels, or why there is none."""
    try:
        record = source[row]
        data = way.form(record.data)
        return encode(record._replace(data=data)), way.channels(data) if way.channels else 0, None
    except (InputError, RunError):
        raise
    except Exception as error:
        return b'', 0, dict(name=source.name(row), reason=reason(error))


def _verify(folder: Path, checks: np.ndarray, way: Way, workers: int) -> None:
    """Reads all back: as many, the same bytes, and each decodes."""
    source = open_source(str(folder), media=way.media)
    if len(source) != len(checks):
        raise RunError(f'{folder}: wrote {len(checks)} records but read back {len(source)}')

    def compare(row: int) -> None:
        record = source[row]
        if zlib.crc32(encode(record)) != checks[row]:
            raise RunError(
                f'{folder}: record {row} ({record.name}) reads back with other bytes; the disk may be full or broken'
            )
        try:
            way.look(record.data)
        except (InputError, RunError):
            raise
        except Exception as error:
            raise RunError(
                f'{folder}: record {row} ({record.name}) cannot be decoded again: {reason(error)}'
            ) from error

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for _ in _in_order(pool, compare, range(len(checks)), AHEAD * workers):
            pass


if __name__ == '__main__':
    sys.exit(main())
