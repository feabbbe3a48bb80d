"""Text to ids and back: bytes, the characters of an alphabet, or a tokenizer of Hugging Face's library."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from mim_jax.errors import InputError

_AT_ONCE = 256  # documents that the library of tokenizers takes at once
_LOST = '\ufffd'
_POINTS = 0x110000  # code points of Unicode


class Vocabulary:
    """A way to write text as ids 0 .. size - 1.

    Attributes:
        size: number of ids.
        unknown: id of what has none, or None where everything has.
        any_bytes: whether a document need not be UTF-8.
        length_type: what holds the bytes of a token.
    """

    size: int
    unknown: int | None = None
    any_bytes, length_type = False, 'uint8'

    def measure(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Ids [n] of a document in UTF-8, and how many of its bytes each stands for, [n]; these add up to all of them.

        Raises:
            UnicodeDecodeError: it is not UTF-8.
        """
        raise NotImplementedError

    def measure_all(self, documents: Iterable[bytes]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`measure` of each."""
        return map(self.measure, documents)

    def encode(self, text: str | bytes) -> np.ndarray:
        """i32[n]."""
        return self.measure(text.encode() if isinstance(text, str) else text)[0].astype(np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids [n]; what cannot be text becomes U+FFFD."""
        raise NotImplementedError


class Bytes(Vocabulary):
    """Any bytes, UTF-8 or not."""

    size = 256
    any_bytes = True

    def measure(self, data):
        return np.frombuffer(data, np.uint8), np.ones(len(data), np.uint8)

    def decode(self, ids):
        ids = np.asarray(ids)
        return np.where((ids >= 0) & (ids < 256), ids, 0xFF).astype(np.uint8).tobytes().decode(errors='replace')


class Characters(Vocabulary):
    """The characters of an alphabet, in sorted order, and one id more for all others.

    Raises:
        InputError: the alphabet is empty.
    """

    def __init__(self, alphabet: str):
        if not alphabet:
            raise InputError(
                'data.reader.alphabet is empty: training fills it with the characters of the training records and keeps it '
                'in WORKDIR/config.json; elsewhere it has to be given'
            )
        points = np.unique(_points(alphabet))
        self.unknown, self.size = len(points), len(points) + 1
        self._text = np.append(points, ord(_LOST)).astype('<u4')
        self._ids = np.full(_POINTS, self.unknown, np.uint32)
        self._ids[points] = np.arange(len(points))

    def measure(self, data):
        points = _points(data.decode())
        lengths = 1 + (points >= 0x80).astype(np.uint8) + (points >= 0x800) + (points >= 0x10000)
        return self._ids[points], lengths

    def decode(self, ids):
        ids = np.asarray(ids)
        return self._text[np.where((ids >= 0) & (ids < self.size), ids, self.unknown)].tobytes().decode('utf-32-le')


class HuggingFace(Vocabulary):
    """A `tokenizer.json`, the folder it is in, or a name on the hub; nothing is added to what it says.

    Raises:
        InputError: it cannot be read, or the library is not installed.
    """

    length_type = 'uint32'

    def __init__(self, name: str):
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise InputError("hf: tokenizers need the tokenizers library: pip install 'mim_jax[text]'") from error
        path = Path(name).expanduser()
        path = path / 'tokenizer.json' if path.is_dir() else path
        try:
            self._tokenizer = Tokenizer.from_file(str(path)) if path.exists() else Tokenizer.from_pretrained(name)
        except Exception as error:  # the library raises bare Exceptions; each means that this name cannot be read
            raise InputError(f'data.reader.tokenizer=hf:{name}: {" ".join(str(error).split())[:300]}') from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size = max(self._tokenizer.get_vocab().values()) + 1

    def measure(self, data):
        return next(self.measure_all([data]))

    def measure_all(self, documents):
        documents = iter(documents)
        while texts := [data.decode() for data in islice(documents, _AT_ONCE)]:
            found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
            for text, encoding in zip(texts, found, strict=True):
                yield np.array(encoding.ids, np.int64), _lengths(text, [start for start, _ in encoding.offsets])

    def decode(self, ids):
        ids = np.asarray(ids)
        return self._tokenizer.decode(ids[(ids >= 0) & (ids < self.size)].tolist(), skip_special_tokens=False)


def _points(text: str) -> np.ndarray:
    """u32[n]: the code points."""
    return np.frombuffer(text.encode('utf-32-le'), '<u4')


def _lengths(text: str, starts: list[int]) -> np.ndarray:
    """Bytes from the start of each token to that of the next, so that blanks a tokenizer drops count too.

    Args:
        text: a document of n tokens.
        starts: the first character of each.
    """
    if not starts:
        return np.zeros(0, np.int64)
    ends = np.cumsum([0, *(len(c.encode()) for c in text)]) if not text.isascii() else np.arange(len(text) + 1)
    starts = np.maximum.accumulate([0, *starts[1:]])
    return np.diff(ends[starts], append=ends[-1])


def alphabet_of(documents: Iterable[bytes]) -> str:
    """The characters of documents, sorted; those that are not UTF-8 are left out."""
    found = set()
    for data in documents:
        try:
            found.update(data.decode())
        except UnicodeDecodeError:
            continue
    return ''.join(sorted(found))


@lru_cache(maxsize=4)
def open_vocabulary(tokenizer: str, alphabet: str = '') -> Vocabulary:
    """The vocabulary a name means.

    Args:
        tokenizer: 'bytes', 'characters' or 'hf:NAME_OR_PATH'.
        alphabet: of 'characters'.

    Raises:
        InputError: no such tokenizer, or it cannot be opened.
    """
    if tokenizer.startswith('hf:'):
        return HuggingFace(tokenizer.removeprefix('hf:'))
    if tokenizer not in ('bytes', 'characters'):
        raise InputError(f'data.reader.tokenizer={tokenizer}: it has to be bytes, characters or hf:NAME_OR_PATH')
    return Characters(alphabet) if tokenizer == 'characters' else Bytes()
