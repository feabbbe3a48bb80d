"""Parquet with encoded images or videos, as Hugging Face writes it: struct{bytes, path} or bytes, or with texts; and labels."""

import bisect
import json
import logging
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mim_jax.data.sources.base import Labelled, Labels, Record, Video, number, text_column
from mim_jax.errors import InputError

CACHE_BYTES = 1 << 30  # of encoded row groups kept by each process
_NAMES = dict(
    image=('image', 'img', 'jpg', 'jpeg', 'png', 'webp', 'bytes', 'image_bytes', 'pixel_values'),
    video=('video', 'mp4', 'clip', 'bytes', 'video_bytes'),
)
_LABELS = ('label', 'labels', 'class', 'cls', 'target', 'fine_label', 'category')


class Parquet(Labelled):
    """Shards `files`, read by row group; `split` keeps the rows whose column `split` says so."""

    def __init__(
        self,
        files: list[Path],
        labels: str,
        class_names: list[str] | None,
        split: str | None = None,
        media: str = 'image',
    ):
        self.files, self.media = [str(file) for file in files], media
        self._short = [Path(file).name for file in files]
        schema = _schema(self.files)
        features = _features(schema)
        self.column = _column_of(media, schema, features, self.files[0])
        self._groups, self._starts, size = [], [], 0  # (file, row group, first row of the file) and first row
        for number_, file in enumerate(self.files):
            meta, first = pq.read_metadata(file), size
            for group in range(meta.num_row_groups):
                self._groups.append((number_, group, first))
                self._starts.append(size)
                size += meta.row_group(group).num_rows
        self._rows = np.arange(size) if split is None else _rows_of(self.files, split)
        ids = _labels(self.files, schema, features, labels, class_names)
        self.labels = Labels(ids.ids[self._rows], ids.names)
        self._open_cache()
        total = sum(Path(file).stat().st_size for file in self.files)
        if total > CACHE_BYTES:
            logging.getLogger(__name__).warning(
                '%s and its like hold %.1f GiB, which random access reads again and again: python -m mim_jax.tools.pack '
                'makes shards that are fast to shuffle',
                self.files[0],
                total / 2**30,
            )

    def _open_cache(self):
        self._cache, self._cached, self._lock = OrderedDict(), 0, threading.Lock()

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key not in ('_cache', '_cached', '_lock')}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open_cache()

    def _fields(self, group: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
        """Encoded images, or texts, and their paths in a row group, those read last from memory."""
        if fields := self._cache.get(group):
            return fields
        with self._lock:
            if fields := self._cache.get(group):
                return fields
            file, index, _ = self._groups[group]
            column = pq.ParquetFile(self.files[file]).read_row_group(index, [self.column], use_threads=False).column(0)
            struct = pa.types.is_struct(column.type)
            self._cached += column.nbytes
            while self._cached > CACHE_BYTES and self._cache:
                self._cached -= sum(field.nbytes for field in self._cache.popitem(last=False)[1] if field)
            paths = pc.struct_field(column, 'path') if struct and column.type.get_field_index('path') >= 0 else None
            fields = pc.struct_field(column, 'bytes') if struct else column, paths
            self._cache[group] = fields
        return fields

    def _place(self, index: int) -> tuple[int, int]:
        """Row group and row of the data set."""
        row = int(self._rows[index])
        return bisect.bisect_right(self._starts, row) - 1, row

    def __getitem__(self, index: int) -> Record:
        group, row = self._place(index)
        data, paths = self._fields(group)
        offset = row - self._starts[group]
        value = data[offset].as_py()
        if value is None and paths is not None and (path := paths[offset].as_py()):
            path = Path(self.files[0]).parent / path  # relative to the shard
            value = Video(str(path)) if self.media == 'video' else path.read_bytes()
        value = value.encode() if isinstance(value, str) else value or b''
        return Record(self._name(group, row), value, int(self.labels.ids[index]))

    def name(self, index: int) -> str:
        return self._name(*self._place(index))

    def _name(self, group: int, row: int) -> str:
        file, _, first = self._groups[group]
        return f'{self._short[file]}:{row - first}'


def splits_of(file: Path) -> set[str]:
    """What stands in the column `split`, if there is one."""
    if 'split' not in pq.read_schema(file).names:
        return set()
    return set(pq.read_table(file, columns=['split']).column(0).to_pylist())


def _rows_of(files: list[str], split: str) -> np.ndarray:
    tables = [pq.read_table(file, columns=['split']).column(0).to_pylist() for file in files]
    rows = np.flatnonzero([value == split for table in tables for value in table])
    if not len(rows):
        raise InputError(f'{files[0]}:{split}: no row has split {split!r}')
    return rows


def _schema(files: list[str]) -> pa.Schema:
    """The schema that all the shards share."""
    try:
        first, *others = ((file, pq.read_schema(file)) for file in files)
    except pa.ArrowInvalid as error:
        raise InputError(f'{files[0]} and its like: not Parquet ({error})') from error
    for file, schema in others:
        if schema.remove_metadata() != first[1].remove_metadata() or _features(schema) != _features(first[1]):
            raise InputError(f'{first[0]} and {file} are not shards of one data set: their columns or classes differ')
    return first[1]


def _features(schema: pa.Schema) -> dict:
    """Hugging Face's description of the columns, or {}."""
    text = (schema.metadata or {}).get(b'huggingface')
    return (json.loads(text).get('info') or {}).get('features') or {} if text else {}


def _column_of(media: str, schema: pa.Schema, features: dict, where: str) -> str:
    if media == 'text':
        kinds = (pa.types.is_string, pa.types.is_large_string)
        return text_column([field.name for field in schema if any(kind(field.type) for kind in kinds)], where)

    def holds_files(field) -> bool:
        kind = field.type
        return (
            pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
            or (pa.types.is_struct(kind) and kind.get_field_index('bytes') >= 0)
        )

    kinds = {name: features.get(name, {}).get('_type', '').lower() for name in schema.names}
    foreign = {name for other in _NAMES if other != media for name in _NAMES[other]} - set(_NAMES[media])
    holding = [field.name for field in schema if holds_files(field)]
    declared = [name for name in holding if kinds[name] == media]
    found = [name for name in holding if kinds[name] not in _NAMES and name not in foreign]
    named = [name for name in _NAMES[media] if name in found]
    if not (declared or found):
        found = ', '.join(f'{name} ({kinds[name] or schema.field(name).type})' for name in schema.names)
        raise InputError(f'{where}: no column of encoded {media}s among {found}')
    return (declared or named or found)[0]


def _labels(files: list[str], schema: pa.Schema, features: dict, labels: str, class_names: list[str] | None) -> Labels:
    declared = [name for name in schema.names if features.get(name, {}).get('_type') == 'ClassLabel']
    column = labels
    if labels in ('auto', 'none'):
        named = [name for name in (*_LABELS, *declared) if name in schema.names]
        column = named[0] if named and labels == 'auto' else None
    elif labels not in schema.names:
        raise InputError(f'data.labels={labels}: {files[0]} has no such column, only {", ".join(schema.names)}')
    if column is None:
        return Labels(np.full(sum(pq.read_metadata(file).num_rows for file in files), -1, np.int32))
    values = [value for file in files for value in pq.read_table(file, columns=[column]).column(0).to_pylist()]
    return number(values, features.get(column, {}).get('names') or class_names, f'{files[0]}, column {column}')
