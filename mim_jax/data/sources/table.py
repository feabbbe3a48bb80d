"""Tables of texts: .csv with a header, .jsonl with an object a line."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mim_jax.data.sources.base import Labelled, Labels, Record, number, text_column
from mim_jax.errors import InputError

_LABELS = ('label', 'labels', 'class', 'target', 'category')
_CELL = 1 << 30  # characters that a cell of a .csv may have


class Table(Labelled):
    """The texts of a file; those of a .jsonl stay on disk. A line that is no JSON object is a bad record.

    Args:
        path: the file.
        labels: 'auto', 'none' or a column.
        class_names: see `open_source`.
        media: 'text'.
        split: keeps the rows whose column `split` says so; None = all.

    Raises:
        InputError: no column of texts, no such column of labels, no row of the split, or not UTF-8.
    """

    def __init__(
        self, path: Path, labels: str, class_names: list[str] | None, media: str = 'text', split: str | None = None
    ):
        self.path, self.media, self.column, column = path, media, '', None
        places, values, self._texts = [], [], []
        for line, start, fields in _rows(path):
            if split is not None and fields.get('split') != split:
                continue
            if fields and not self.column:
                strings = [name for name, value in fields.items() if isinstance(value, str | None)]
                self.column, column = text_column(strings, str(path)), _label_column(path, [*fields], labels)
            places.append((line, start))
            values.append(fields.get(column))
            if path.suffix == '.csv':
                self._texts.append((fields[self.column] or '').encode())
        if not self.column:
            broken = f', for line {places[0][0]} is no JSON object' if places else ''
            raise InputError(f'{path} has no row' + (f' of split {split!r}' if split else broken))
        self._places, self.labels = np.array(places), _labels(values, class_names, f'{path}, column {column}')

    def __getitem__(self, index: int) -> Record:
        return Record(self.name(index), self._text(index), int(self.labels.ids[index]))

    def _text(self, index: int) -> bytes:
        if self._texts:
            return self._texts[index]
        with self.path.open('rb') as file:
            file.seek(int(self._places[index, 1]))
            text = _fields(file.readline()).get(self.column)
        if not isinstance(text, str | None):
            raise ValueError(f'{self.column} is {type(text).__name__}; it has to be a string')
        return (text or '').encode()

    def name(self, index: int) -> str:
        return f'{self.path.name}:{self._places[index, 0]}'


def splits_of(path: Path) -> set[str]:
    """What stands in the column `split`, if there is one.

    Raises:
        InputError: not UTF-8.
    """
    found = set()
    for _, _, fields in _rows(path):
        if fields and 'split' not in fields:
            break
        found.add(fields.get('split'))
    return found - {None, ''}


def _rows(path: Path) -> Iterator[tuple[int, int, dict]]:
    """(line, first byte or 0, values by column) of each row; no values = it cannot be read."""
    try:
        yield from (_json_rows if path.suffix == '.jsonl' else _csv_rows)(path)
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not UTF-8 at byte {error.start} of a block: convert it, as by iconv') from error
    except csv.Error as error:
        raise InputError(f'{path}: not a .csv ({error})') from error


def _csv_rows(path: Path) -> Iterator[tuple[int, int, dict]]:
    csv.field_size_limit(_CELL)
    with path.open(encoding='utf-8-sig', newline='') as file:
        reader = csv.DictReader(file)
        before = reader.line_num or 1
        for fields in reader:
            yield before + 1, 0, fields
            before = reader.line_num


def _json_rows(path: Path) -> Iterator[tuple[int, int, dict]]:
    start = 0
    with path.open('rb') as file:
        for line, data in enumerate(file, 1):
            if data.strip():
                try:
                    yield line, start, _fields(data)
                except ValueError:
                    yield line, start, {}
            start += len(data)


def _fields(line: bytes) -> dict:
    """The object of a line.

    Raises:
        ValueError: it is none.
    """
    fields = json.loads(line.decode('utf-8-sig'))
    if not isinstance(fields, dict):
        raise ValueError(f'a line has to be a JSON object, not {type(fields).__name__}')
    return fields


def _label_column(path: Path, columns: list[str], labels: str) -> str | None:
    if labels in ('auto', 'none'):
        return next((name for name in _LABELS if name in columns), None) if labels == 'auto' else None
    if labels not in columns:
        raise InputError(f'data.labels={labels}: {path} has no such column, only {", ".join(map(str, columns))}')
    return labels


def _labels(values: list, class_names: list[str] | None, where: str) -> Labels:
    """As `number`; digits are numbers, and an empty cell is no label."""
    values = [None if value == '' else value for value in values]
    if all(value is None or isinstance(value, str) and value.lstrip('-').isdigit() for value in values):
        values = [None if value is None else int(value) for value in values]
    return number(values, class_names, where)
