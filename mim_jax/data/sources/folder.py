"""Files of images, videos or text: a flat or nested folder, a folder per class, a list file, a glob."""

import csv
import math
import os
from collections import Counter
from functools import partial
from glob import glob
from pathlib import Path

import numpy as np

from mim_jax.data.sources.base import Labelled, Labels, Record, Video, number
from mim_jax.errors import InputError

SUFFIXES = dict(
    image=('.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff', '.npy', '.bmp', '.gif'),
    video=('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi', '.mpg', '.mpeg', '.ts', '.wmv', '.flv', '.3gp', '.ogv'),
    text=('.txt', '.md', '.rst', '.tex', '.html', '.py', '.c', '.h', '.cpp', '.java', '.js', '.go', '.rs', '.sh'),
)
_LABELS, _NO_LABELS = ('label', 'labels', 'class', 'target'), ('start', 'end', 'split')
_HEADERS = ('path', 'file', 'filename', 'file_name', 'image', 'video', 'name')


class Files(Labelled):
    """Files `names`, relative to `root`: images and texts are read when asked for, videos are left to the decoder.

    spans: (start, end) of each video in seconds, end None = its end; None = all of every file.
    """

    def __init__(self, root: str, names: list[str], labels: Labels, media: str = 'image', spans: list | None = None):
        self.root, self.names, self.labels, self.media, self.spans = root, names, labels, media, spans

    def __getitem__(self, index: int) -> Record:
        path, label = os.path.join(self.root, self.names[index]), int(self.labels.ids[index])
        if self.media == 'video':
            return Record(self.name(index), Video(path, *(self.spans[index] if self.spans else ())), label)
        with open(path, 'rb', buffering=0) as file:
            return Record(self.name(index), file.read(), label)

    def name(self, index: int) -> str:
        if not self.spans or self.spans[index] == (0.0, None):
            return self.names[index]
        start, end = self.spans[index]
        return f'{self.names[index]}@{start:g}-{"" if end is None else format(end, "g")}'


def folder(path: Path, labels: str, class_names: list[str] | None, media: str = 'image') -> Files:
    """All images (or videos) under `path`, sorted. Labels are the first-level sub-folders, if every file is in one and there are two or more.

    Raises:
        InputError: no such file in it, or `labels` names a column.
    """
    _no_column(labels, path)
    names, others = [], Counter()
    for root, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith('.') and f != '__MACOSX')
        for file in sorted(f for f in files if not f.startswith('.')):
            if file.lower().endswith(SUFFIXES[media]):
                names.append(os.path.relpath(os.path.join(root, file), path))
            else:
                others[os.path.splitext(file)[1] or file] += 1
    if not names:
        found = ', '.join(f'{count} {kind}' for kind, count in others.most_common(5)) or 'nothing'
        raise InputError(f'no {media} file in {path}: looked for {" ".join(SUFFIXES[media])}, found {found}')
    tops = [name.split(os.sep)[0] if os.sep in name else None for name in names]
    classes = labels == 'auto' and None not in tops and (class_names or len(set(tops)) > 1)
    return Files(str(path), names, number(tops if classes else [None] * len(names), class_names, str(path)), media)


def matching(pattern: str, labels: str, media: str = 'image') -> Files:
    """The image (or video) files a glob finds (`**` = any depth), sorted, without labels.

    Raises:
        InputError: it finds none.
    """
    _no_column(labels, pattern)
    names = sorted(name for name in glob(pattern, recursive=True) if name.lower().endswith(SUFFIXES[media]))
    if not names:
        found = Counter(os.path.splitext(name)[1] or name for name in glob(pattern, recursive=True)).most_common(5)
        found = ', '.join(f'{count} {kind}' for kind, count in found) or 'nothing'
        raise InputError(f'no {media} file matches {pattern}: looked for {" ".join(SUFFIXES[media])}, found {found}')
    return Files('', names, Labels(np.full(len(names), -1, np.int32)), media)


def document(path: Path, labels: str) -> Files:
    """One file of text.

    Raises:
        InputError: `labels` names a column.
    """
    _no_column(labels, path)
    return Files(str(path.parent), [path.name], Labels(np.full(1, -1, np.int32)), 'text')


def listing(
    path: Path, labels: str, class_names: list[str] | None, media: str = 'image', split: str | None = None
) -> Files:
    """The files a list names, one a line: `path` or `path label` (.txt), `path,label` with or without a header (.csv).

    Paths are relative to the list. In a .csv with a header `labels` may name the column; columns `start` and `end` give the
    seconds of a video that count, `label_name` names of numbered classes, and `split` is what `split` chooses by.

    Raises:
        InputError: an empty list, no such column or split, or a time that is not a number.
    """
    header, rows = _table(path)
    column, names = _label_column(path, header, labels), _label_names(header, rows) if labels == 'auto' else None
    if split is not None:
        rows = [row for row, value in zip(rows, _column(header, rows, 'split'), strict=True) if value == split]
    if not rows:
        raise InputError(f'{path} lists no file' + (f' of split {split!r}' if split else ''))
    _check_media(path, rows, media)
    values = [(row[column] or None) if column is not None and len(row) > column else None for row in rows]
    if all(value is None or value.lstrip('-').isdigit() for value in values):
        values = [None if value is None else int(value) for value in values]
        class_names = class_names or names
    cells = partial(_column, header, rows)
    spans = [_span(path, *span) for span in zip(cells('start'), cells('end'), strict=True)]
    return Files(str(path.parent), [row[0] for row in rows], number(values, class_names, str(path)), media,
                 spans if any(span != (0.0, None) for span in spans) else None)  # fmt: skip


def _label_column(path: Path, header: list[str], labels: str) -> int | None:
    """The number of the column of labels: the second one, where a header does not say otherwise."""
    if not header:
        _no_column(labels, path)
    elif labels not in ('auto', 'none'):
        if labels not in header:
            raise InputError(f'data.labels={labels}: {path} has no such column, only {", ".join(header)}')
        return header.index(labels)
    if labels == 'none':
        return None
    named = [name for name in (*_LABELS, *header[1:2]) if name in header and name not in _NO_LABELS]
    return header.index(named[0]) if named else None if header else 1


def _label_names(header: list[str], rows: list[list[str]]) -> list[str] | None:
    """Names of the classes 0, 1, ... by the column `label_name`, over all splits; None if they are not all there."""
    labels, names = (_column(header, rows, name) for name in ('label', 'label_name'))
    found = {int(label): name for label, name in zip(labels, names, strict=True) if label.isdigit() and name}
    return [found[i] for i in range(len(found))] if found and max(found) == len(found) - 1 else None


def _check_media(path: Path, rows: list[list[str]], media: str) -> None:
    """A list of nothing but files of another kind is a mistake; names may also say nothing of what they are."""
    others = {other for other in SUFFIXES if other != media for row in rows if row[0].lower().endswith(SUFFIXES[other])}
    if others and not any(row[0].lower().endswith(SUFFIXES[media]) for row in rows):
        raise InputError(f'{path} lists {others.pop()} files, as {rows[0][0]}, but the config is one of {media}s')


def splits_of(path: Path) -> set[str]:
    """What stands in the column `split` of a list, if there is one."""
    header, rows = _table(path)
    return {value for value in _column(header, rows, 'split') if value}


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header of a list, [] where it has none, and its rows."""
    lines = [
        line for line in path.read_text(encoding='utf-8-sig').splitlines() if line.strip() and not line.startswith('#')
    ]
    rows = csv.reader(lines) if path.suffix == '.csv' else map(_split, lines)
    rows = [[cell.strip() for cell in row] for row in rows]
    has_header = rows and rows[0][0].lower() in _HEADERS
    return (rows[0], rows[1:]) if has_header else ([], rows)


def _column(header: list[str], rows: list[list[str]], name: str) -> list[str]:
    """The cells of a column, '' where it is missing."""
    if name not in header:
        return [''] * len(rows)
    index = header.index(name)
    return [row[index] if index < len(row) else '' for row in rows]


def _span(path: Path, start: str, end: str) -> tuple[float, float | None]:
    """Seconds."""
    try:
        span = float(start or 0), float(end) if end else None
    except ValueError as error:
        raise InputError(f'{path}: start {start!r}, end {end!r}: they have to be seconds') from error
    if not 0 <= span[0] < math.inf or span[1] is not None and not span[1] > span[0]:
        raise InputError(f'{path}: start {start!r}, end {end!r}: the end has to be after the start')
    return span


def _split(line: str) -> list[str]:
    """[path] or [path, label]: a path may hold blanks, so what ends like a file is all path."""
    line = line.strip()
    return [line] if line.lower().endswith((*SUFFIXES['image'], *SUFFIXES['video'])) else line.rsplit(None, 1)


def _no_column(labels: str, where) -> None:
    if labels not in ('auto', 'none'):
        raise InputError(f"data.labels={labels}: {where} has no columns, so it can be 'auto' or 'none'")
