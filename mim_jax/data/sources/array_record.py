"""Our packed shards: ArrayRecord files beside an index.json, as `python -m mim_jax.tools.pack` and `.tokenize` write them.

A record is a little-endian header `label i64, length of the name u32`, the name in UTF-8, then the encoded image or video (the
bytes of a file: JPEG, PNG, WebP, TIFF, MP4, ..., or NPY), or an NPY of token ids or latents. The index of these says in `tokens` what
they are: their `shape`, of ids the `vocab`, of latents the `mean` and `std` of each channel, and what made them.
"""

import json
import struct
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource

from mim_jax.data.sources.base import Record, Source, another
from mim_jax.errors import InputError

INDEX = 'index.json'
VERSION = 1
_HEADER = struct.Struct('<qI')


def encode(record: Record) -> bytes:
    """A record, its data as bytes, in the layout above."""
    name = record.name.encode()
    return b''.join((_HEADER.pack(record.label, len(name)), name, record.data))


def decode(packed: bytes) -> Record:
    """The inverse of `encode`."""
    label, length = _HEADER.unpack_from(packed)
    end = _HEADER.size + length
    return Record(packed[_HEADER.size : end].decode(), packed[end:], label)


class Packed(Source):
    """The shards of a folder with an index.json."""

    def __init__(self, path: Path, labels: str, media: str = 'image'):
        if labels not in ('auto', 'none'):
            raise InputError(f"data.labels={labels}: {path} has no columns, so it can be 'auto' or 'none'")
        try:
            index = json.loads((path / INDEX).read_text())
            paths = [path / shard['file'] for shard in index['shards']]
            count, num_classes, names = index['count'], index['num_classes'], index['class_names']
            holds, self.tokens = index.get('media', 'image'), index.get('tokens', {})
        except (json.JSONDecodeError, KeyError) as error:
            raise InputError(f'{path / INDEX}: not the index of packed shards ({error!r})') from error
        if holds != media:
            raise InputError(another(f'{path} holds packed', holds, media))
        if missing := [file for file in paths if not file.exists()]:
            raise InputError(f'{path / INDEX} names {missing[0]}, which is missing: pack again, or copy all shards')
        self.path, self.labels, self.media = path, labels, media
        if labels == 'auto':
            self.num_classes, self.class_names = num_classes, names
        self._shards = ArrayRecordDataSource([str(file) for file in paths])
        if len(self._shards) != count:
            raise InputError(f'{path}: {len(self._shards)} records, but {INDEX} says {count}: pack again')

    def __reduce__(self):
        return Packed, (self.path, self.labels, self.media)  # a worker opens the shards itself

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Record:
        record = decode(self._shards[index])
        return record if self.labels == 'auto' else record._replace(label=-1)

    def name(self, index: int) -> str:
        return f'{self.path.name}:{index}'
