"""Documents to rows of tokens: each is tokenised once, cut where it is longer than a row, and packed with others."""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np

from mim_jax.data.image import Unreadable, reason
from mim_jax.data.sources.base import Record, Source
from mim_jax.data.sources.documents import divided
from mim_jax.data.tokens import TokenReader
from mim_jax.data.vocabulary import Vocabulary, alphabet_of, open_vocabulary
from mim_jax.errors import InputError, RunError

MOST = 2 << 30  # bytes of text whose tokens are kept in memory
_BOM = b'\xef\xbb\xbf'


class TextReader(TokenReader):
    """Documents to rows of `length` tokens.

    Args:
        length: of a row.
        tokenizer: 'bytes', 'characters' or 'hf:NAME_OR_PATH' (Hugging Face's tokenizers).
        alphabet: of 'characters'.
        separator: a regular expression; wherever it matches in a record a document begins, '^' is the start of any line.
            '' = a record is one document.
        documents: 'pack' = as many as fit into a row, none in two rows unless it is longer than one; 'row' = one a row, with its
            label; 'cut' = one after the other, cut into full rows.

    Raises:
        InputError: an option out of range, an unknown tokenizer, or no regular expression.
    """

    media = 'text'

    def __init__(
        self,
        *,
        length: int = 256,
        tokenizer: str = 'bytes',
        alphabet: str = '',
        separator: str = '',
        documents: str = 'pack',
    ):
        if length < 1 or documents not in ('pack', 'row', 'cut'):
            raise InputError(
                f'data.reader: length={length} has to be above 0, and documents={documents} pack, row or cut'
            )
        try:
            self._begins = re.compile(separator.encode(), re.MULTILINE) if separator else None
        except re.error as error:
            raise InputError(f'data.reader.separator={separator}: no regular expression ({error})') from error
        self.length, self.documents = length, documents
        vocabulary = open_vocabulary(tokenizer, alphabet)
        super().__init__(shape=(length,), vocab=vocabulary.size, tokenizer=tokenizer, alphabet=alphabet)

    def divide(self, source: Source) -> Source:
        """The documents of records."""
        return divided(source, self._begins)

    def arrange(self, source: Source, scratch: Path | None = None) -> 'Rows':
        """Rows of all the documents of a source. Tokenises them, in memory or into files of the folder `scratch`.

        Raises:
            InputError: no document can be used, or they are too many for the memory.
        """
        return Rows(source, self.vocabulary, self.length, self.documents, scratch)

    @classmethod
    def settle(cls, options: Mapping, records: Callable[..., Source]) -> dict:
        """The alphabet of the training documents, where the tokenizer needs one and `options` have none."""
        if options.get('tokenizer') != 'characters' or options.get('alphabet'):
            return {}
        source = records(cls(separator=options.get('separator', '')).divide)
        return dict(alphabet=alphabet_of(data for _, data in _readable(source, False, [])))


class Rows(Source):
    """Documents as rows of tokens; a record is i32[3, length] = (ids, segment, bytes of each token), zeros where there is none.

    Attributes:
        skipped: (name, reason) of each document that could not be used.

    Args and errors as of `TextReader.arrange`.
    """

    def __init__(self, source: Source, vocabulary: Vocabulary, length: int, how: str, scratch: Path | None = None):
        self.source, self.length, self.skipped = source, length, []
        self.ids, self.bytes, self._offsets, known = _tokenise(source, vocabulary, self.skipped, scratch)
        self._numbers, self._labels = known.T
        starts, ends, row = pieces(self._offsets, length, how)
        order = np.argsort(row, kind='stable')
        self._starts, self._ends = starts[order], ends[order]
        self._document = np.searchsorted(self._offsets, self._starts, 'right') - 1
        self._first = np.searchsorted(row[order], np.arange(row.max() + 2))  # piece of each row
        if len(starts) == len(self):
            self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: int) -> Record:
        here = slice(self._first[index], self._first[index + 1])
        starts, ends, documents = self._starts[here], self._ends[here], self._document[here]
        where = np.concatenate([np.arange(*span) for span in zip(starts, ends, strict=True)])
        out = np.zeros((3, self.length), np.int32)
        out[0, : len(where)], out[2, : len(where)] = self.ids[where], self.bytes[where]
        out[1, : len(where)] = np.repeat(np.arange(1, len(starts) + 1), ends - starts)
        label = int(self._labels[documents[0]]) if (documents == documents[0]).all() else -1
        return Record(self.name(index), out, label)

    def name(self, index: int) -> str:
        """That of its first document, and which token of it comes first, if that is not 0."""
        piece = self._first[index]
        skipped = self._starts[piece] - self._offsets[self._document[piece]]
        return self.source.name(int(self._numbers[self._document[piece]])) + (f'@{skipped}' if skipped else '')


def pieces(offsets: np.ndarray, length: int, how: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First token i64[p], token after the last i64[p] and row i64[p] of each piece of documents.

    Args:
        offsets: i64[documents + 1], where each begins in one array of all tokens; none is empty.
        length: of a row.
        how: see `TextReader`.
    """
    total = offsets[-1]
    if how == 'cut':
        starts = np.union1d(offsets[:-1], np.arange(0, total, length))
        return starts, np.append(starts[1:], total), starts // length
    counts = -(-np.diff(offsets) // length)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # within its document
    starts = np.repeat(offsets[:-1], counts) + number * length
    ends = np.append(starts[1:], total)
    return starts, ends, best_fit(ends - starts, length) if how == 'pack' else np.arange(len(starts))


def best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """Rows i64[p] of pieces of `sizes` [p], each at most `length`: the largest first, into the fullest row that has room.

    arXiv 2404.10830. A bit for each room that some row has left makes that row a matter of one shift.
    """
    row_of, rows, open_rows, rooms = np.empty(len(sizes), np.int64), 0, [[] for _ in range(length + 1)], 0
    for piece in np.argsort(-sizes.astype(np.int64), kind='stable').tolist():
        size = int(sizes[piece])
        if fitting := rooms >> size:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            rooms ^= 0 if open_rows[room] else 1 << room
        else:
            row, room, rows = rows, length, rows + 1
        row_of[piece] = row
        if room > size:
            open_rows[room - size].append(row)
            rooms |= 1 << room - size
    return row_of


def _readable(source: Source, any_bytes: bool, skipped: list) -> Iterator[tuple[tuple[int, int], bytes]]:
    """((number, label), text without byte order mark) of the documents that can be used; lists the others."""
    for number in range(len(source)):
        try:
            record = source[number]
            data = bytes(record.data).removeprefix(_BOM)
            if not data:
                raise Unreadable('empty document')
            if not any_bytes:
                data.decode()
        except (InputError, RunError, MemoryError):
            raise
        except UnicodeDecodeError as error:
            skipped.append((source.name(number), f'not UTF-8 at byte {error.start}; the tokenizer bytes takes it'))
        except Exception as error:  # readers raise nearly anything on a broken file
            skipped.append((source.name(number), reason(error)))
        else:
            yield (number, record.label), data


def _tokenise(source: Source, vocabulary: Vocabulary, skipped: list, scratch: Path | None):
    """Of the documents that have tokens: ids [n] and bytes [n] of all tokens, offsets i64[d + 1], (number, label) i64[d, 2]."""
    types = np.min_scalar_type(vocabulary.size - 1), np.dtype(vocabulary.length_type)
    files = [tempfile.TemporaryFile(dir=scratch) if scratch else BytesIO() for _ in types]
    offsets, known, kept, size = [0], [], [], 0

    def texts():
        nonlocal size
        for place, data in _readable(source, vocabulary.any_bytes, skipped):
            size += len(data)
            if size > MOST and not scratch:
                raise InputError(
                    f'more than {MOST / 2**30:g} GiB of text, as {source.name(0)}: python -m mim_jax.tools.tokenize makes '
                    'shards of any size for a TokenReader'
                )
            known.append(place)
            yield data

    for place, found in enumerate(vocabulary.measure_all(texts())):
        if not len(found[0]):
            skipped.append((source.name(known[place][0]), f'no token among {found[1].sum()} bytes'))
            continue
        for file, values, kind in zip(files, found, types, strict=True):
            file.write(values.astype(kind).tobytes())
        offsets.append(offsets[-1] + len(found[0]))
        kept.append(place)
    if not kept:
        why = f', as {skipped[0][0]} ({skipped[0][1]})' if skipped else ''
        raise InputError(f'none of {len(source)} documents can be used{why}')
    arrays = [_array(file, kind) for file, kind in zip(files, types, strict=True)]
    return *arrays, np.array(offsets), np.array(known, np.int64)[kept]


def _array(file: IO[bytes], kind: np.dtype) -> np.ndarray:
    """All of a file as an array, without a copy."""
    if isinstance(file, BytesIO):
        return np.frombuffer(file.getbuffer(), kind)
    file.flush()
    return np.memmap(file, kind, 'r')
