"""Where records come from. `open_source` chooses by what the path is; nothing is decoded here."""

import difflib
import os
from collections.abc import Callable
from glob import glob
from pathlib import Path

import numpy as np

from mim_jax.data.sources.base import MADE, Labels, Record, Source, Subset
from mim_jax.data.sources.documents import Documents
from mim_jax.errors import InputError, refuse_url

TRAIN = ('train', 'training')
MEDIA = ('image', 'video')
VALIDATION = ('val', 'valid', 'validation', 'dev', 'test')

__all__ = [
    'Labels',
    'Record',
    'Source',
    'Subset',
    'find_media',
    'find_splits',
    'hold_out',
    'open_source',
    'open_splits',
]


def open_source(path: str, labels: str = 'auto', class_names: list[str] | None = None, media: str = 'image') -> Source:
    """The records at `path`.

    Args:
        path: a folder of files (flat, nested, a folder per class), a list file (.txt, .csv), a glob, .parquet (file, folder of
            shards or glob), .npz, .npy, a folder of packed shards; `FILE.parquet:SPLIT` and `FILE.csv:SPLIT` keep the rows whose
            column `split` says so; a saved Hugging Face data set, `builtin:NAME[:split]`, `tfds:NAME[:split]`, `hf:NAME[:split]`.
            Of text a .txt is a document, and .csv and .jsonl are tables with a column of them.
        labels: 'auto', 'none', or the name of a column.
        class_names: number the classes like these of the training records.
        media: 'image', 'video' or 'text': which files of a folder and columns of a table count; 'tokens' and 'latents' of packed shards.

    Raises:
        InputError: nothing there, or nothing that can be read; the sentence has the nearest name.
    """
    from mim_jax.data.sources import array_record

    refuse_url(path, '')
    path = os.path.expanduser(path)
    scheme, _, rest = path.partition(':')
    here = Path(path)
    shards = scheme == 'builtin' or (here / array_record.INDEX).exists()
    if media in MADE and (rest or here.exists()) and not shards:
        raise InputError(f'{path}: {media} are read from shards; {MADE[media]}')
    if rest and scheme == 'builtin':
        from mim_jax.data.sources.builtin import builtin

        return builtin(rest, labels, media)
    if rest and scheme == 'tfds':
        from mim_jax.data.sources.tfds import TFDS

        return TFDS(rest, labels, media)
    if rest and scheme == 'hf':
        from mim_jax.data.sources.hugging_face import HuggingFace

        return HuggingFace(rest, labels, class_names, media)
    source = _open_files(path, labels, class_names, media)
    if not len(source):
        raise InputError(f'{path} has no records')
    return source


def _open_files(path: str, labels: str, class_names: list[str] | None, media: str) -> Source:
    """A source on disk."""
    from mim_jax.data.sources import array_record, folder, hugging_face, npz

    shards, split = _parquet_shards(path)
    if shards:
        from mim_jax.data.sources.parquet import Parquet

        return Parquet(shards, labels, class_names, split, media)
    stem, _, split = path.rpartition(':')
    if stem.endswith(('.csv', '.jsonl')) and Path(stem).exists():
        return _listing(Path(stem), labels, class_names, media, split)
    here = Path(path)
    if not here.exists():
        if any(c in path for c in '*?['):
            return folder.matching(path, labels, media)
        raise InputError(_missing(here))
    if here.is_dir():
        if (here / array_record.INDEX).exists():
            return array_record.Packed(here, labels, media)
        if hugging_face.is_saved(here):
            return hugging_face.HuggingFace(str(here), labels, class_names, media)
        return folder.folder(here, labels, class_names, media)
    if here.suffix in ('.npz', '.npy'):
        return npz.Arrays(here, labels, class_names, media)
    if media == 'text' and here.suffix.lower() in folder.SUFFIXES['text']:
        return folder.document(here, labels)
    if here.suffix in ('.txt', '.csv') or here.suffix == '.jsonl' and media == 'text':
        return _listing(here, labels, class_names, media)
    raise InputError(
        f'{path}: cannot read {here.suffix or "this kind of"} files; give a folder, .parquet, .npz, .npy, .txt, .csv, or .jsonl of text'
    )


def _listing(path: Path, labels: str, class_names: list[str] | None, media: str, split: str | None = None) -> Source:
    """A list of files, or a table of texts."""
    from mim_jax.data.sources import folder, table

    return (table.Table if media == 'text' else folder.listing)(path, labels, class_names, media, split)


def _parquet_shards(path: str) -> tuple[list[Path], str | None]:
    """The Parquet files a path means, and the split it asks for."""
    stem, colon, split = path.rpartition(':')
    if colon and stem.endswith('.parquet'):
        return _parquet_shards(stem)[0], split
    if path.endswith('.parquet'):
        return [Path(path)] if Path(path).exists() else [
            Path(name) for name in sorted(glob(path, recursive=True))
        ], None
    return sorted(_shard_folder(Path(path)).glob('*.parquet')), None


def _shard_folder(path: Path) -> Path:
    """PATH, or PATH/data as in the repositories of Hugging Face; not deeper, for a walk through millions of images is slow."""
    return path / 'data' if any((path / 'data').glob('*.parquet')) else path


def _missing(path: Path) -> str:
    """The sentence for a path that does not exist, with the nearest one that does."""
    parent = path.parent
    while not parent.exists():
        path, parent = parent, parent.parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, 1, 0.5)
    return f'{path} does not exist' + (
        f'; did you mean {parent / close[0]}?' if close else f'; {parent} has no such name'
    )


def find_splits(path: str) -> tuple[str, str]:
    """The paths of the training and of the validation records at `path`; '' = it has no validation records of its own.

    Knows PATH/train beside PATH/val or PATH/test, shards named train-* beside test-*, a column `split` of a .parquet, .csv or .jsonl, and the splits of
    builtin:, tfds: and hf: names.
    """
    path = os.path.expanduser(path)
    scheme, _, rest = path.partition(':')
    if rest and scheme == 'builtin':
        return (path, f'{path}:test') if ':' not in rest else (path, '')
    if rest and scheme in ('tfds', 'hf'):
        from mim_jax.data.sources import hugging_face, tfds

        if ':' in rest:
            return path, ''
        return _pair(path, (tfds if scheme == 'tfds' else hugging_face).splits(rest), '{}:{}')
    here = Path(path)
    if here.is_dir():
        folders = {p.name for p in here.iterdir() if p.is_dir()}
        if folders & set(TRAIN):
            return _pair(path, folders, '{}/{}')
        shards = _shard_folder(here)
        return _pair(str(shards), {p.name.split('-')[0] for p in shards.glob('*-*.parquet')}, '{}/{}-*.parquet')
    if here.suffix in ('.parquet', '.csv', '.jsonl') and here.exists():
        from mim_jax.data.sources import folder, parquet, table

        kinds = {'.parquet': [parquet], '.csv': [table, folder], '.jsonl': [table]}[here.suffix]
        return _pair(path, next(filter(None, (kind.splits_of(here) for kind in kinds)), set()), '{}:{}')
    return path, ''


def _pair(path: str, names: set[str], form: str) -> tuple[str, str]:
    train = next((name for name in TRAIN if name in names), None)
    validation = next((name for name in VALIDATION if name in names), None)
    if train is None or (validation is None and names != {train}):  # 'train' may be a class of vehicles
        return path, ''
    return form.format(path, train), form.format(path, validation) if validation else ''


def find_media(path: str) -> str:
    """'image' or 'video': what can be read at `path`; of a mixture, what there is more of.

    Raises:
        InputError: neither.
    """
    path, counts, why = find_splits(path)[0], {}, None
    for media in MEDIA:
        try:
            counts[media] = len(open_source(path, 'none', media=media))
        except InputError as error:
            why = why or error
    if not counts:
        raise why
    return max(counts, key=counts.get)


def hold_out(source: Source, share: float) -> tuple[Source, Source]:
    """Splits a source in two, the second with `share` of the records, one at least: always the same ones, whatever the seed of the run.

    Of a single document it has the end.

    Raises:
        InputError: either part would be empty.
    """
    if isinstance(source, Documents) and len(source) == 1:
        return source.cut(share)
    count = max(round(len(source) * share), 1)
    if not 0 < count < len(source):
        raise InputError(f'data.holdout={share} of {len(source)} records leaves one part empty')
    order = np.random.RandomState(0).permutation(len(source))  # this legacy stream never changes
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))


def open_splits(
    path: str,
    val_path: str = '',
    labels: str = 'auto',
    holdout: float = 0.0,
    media: str = 'image',
    divide: Callable[[Source], Source] = lambda source: source,
) -> tuple[Source, Source | None]:
    """The training and the validation records: those of `val_path`, else those found at `path`, else a share `holdout`.

    Args:
        divide: applied to what is opened, before a share is held out.

    Raises:
        InputError: as `open_source`.
    """
    train_path, found = find_splits(path)
    train = divide(open_source(train_path, labels, media=media))
    if val_path or found:
        return train, divide(open_source(val_path or found, labels, train.class_names, media))
    return hold_out(train, holdout) if holdout else (train, None)
