"""Files: a flat or nested folder, a folder per class, a list file, a glob."""

import csv
import os
from collections import Counter
from glob import glob
from pathlib import Path

import numpy as np

from mim_jax.data.sources.base import Labelled, Labels, Record, number
from mim_jax.errors import InputError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff', '.npy', '.bmp', '.gif')
_HEADERS = ('path', 'file', 'filename', 'file_name', 'image', 'name')


class Files(Labelled):
    """Image files `names`, relative to `root`; read when asked for."""

    def __init__(self, root: str, names: list[str], labels: Labels):
        self.root, self.names, self.labels = root, names, labels

    def __getitem__(self, index: int) -> Record:
        name = self.names[index]
        with open(os.path.join(self.root, name), 'rb', buffering=0) as file:
            return Record(name, file.read(), int(self.labels.ids[index]))

    def name(self, index: int) -> str:
        return self.names[index]


def folder(path: Path, labels: str, class_names: list[str] | None) -> Files:
    """All images under `path`, sorted. Labels are the first-level sub-folders, if every image is in one and there are two or more.

    Raises:
        InputError: no image file in it, or `labels` names a column.
    """
    _no_column(labels, path)
    names, others = [], Counter()
    for root, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith('.') and f != '__MACOSX')
        for file in sorted(f for f in files if not f.startswith('.')):
            if file.lower().endswith(SUFFIXES):
                names.append(os.path.relpath(os.path.join(root, file), path))
            else:
                others[os.path.splitext(file)[1] or file] += 1
    if not names:
        found = ', '.join(f'{count} {kind}' for kind, count in others.most_common(5)) or 'nothing'
        raise InputError(f'no image file in {path}: looked for {" ".join(SUFFIXES)}, found {found}')
    tops = [name.split(os.sep)[0] if os.sep in name else None for name in names]
    classes = labels == 'auto' and None not in tops and (class_names or len(set(tops)) > 1)
    return Files(str(path), names, number(tops if classes else [None] * len(names), class_names, str(path)))


def matching(pattern: str, labels: str) -> Files:
    """The image files a glob finds (`**` = any depth), sorted, without labels.

    Raises:
        InputError: it finds none.
    """
    _no_column(labels, pattern)
    names = sorted(name for name in glob(pattern, recursive=True) if name.lower().endswith(SUFFIXES))
    if not names:
        raise InputError(f'no image file matches {pattern}: looked for {" ".join(SUFFIXES)}')
    return Files('', names, Labels(np.full(len(names), -1, np.int32)))


def listing(path: Path, labels: str, class_names: list[str] | None) -> Files:
    """The files a list names, one a line: `path` or `path label` (.txt), `path,label` with or without a header (.csv).

    Paths are relative to the list. In a .csv with a header `labels` may name the column.

    Raises:
        InputError: an empty list, or no such column.
    """
    lines = [
        line for line in path.read_text(encoding='utf-8-sig').splitlines() if line.strip() and not line.startswith('#')
    ]
    rows = list(csv.reader(lines)) if path.suffix == '.csv' else [_split(line) for line in lines]
    column = 1
    if rows and rows[0][0].strip().lower() in _HEADERS:
        header, rows = [cell.strip() for cell in rows[0]], rows[1:]
        named = header.index('label') if 'label' in header else 1
        column = named if labels in ('auto', 'none') else header.index(labels) if labels in header else -1
        if column < 0:
            raise InputError(f'data.labels={labels}: {path} has no such column, only {", ".join(header)}')
    else:
        _no_column(labels, path)
    if not rows:
        raise InputError(f'{path} lists no file')
    values = [row[column].strip() if len(row) > column and labels != 'none' else None for row in rows]
    if all(value is None or value.lstrip('-').isdigit() for value in values):
        values = [None if value is None else int(value) for value in values]
        class_names = None
    return Files(str(path.parent), [row[0].strip() for row in rows], number(values, class_names, str(path)))


def _split(line: str) -> list[str]:
    """[path] or [path, label]: a path may hold blanks, so what ends like an image is all path."""
    line = line.strip()
    return [line] if line.lower().endswith(SUFFIXES) else line.rsplit(None, 1)


def _no_column(labels: str, where) -> None:
    if labels not in ('auto', 'none'):
        raise InputError(f"data.labels={labels}: {where} has no columns, so it can be 'auto' or 'none'")
