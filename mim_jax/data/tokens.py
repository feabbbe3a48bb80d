"""Rows of token ids: of text, or codes that an autoencoder made."""

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO

import numpy as np

from mim_jax.data.image import Unreadable
from mim_jax.data.reader import Reader
from mim_jax.data.sources.base import Source
from mim_jax.data.vocabulary import Vocabulary, open_vocabulary
from mim_jax.errors import InputError

UNKNOWN = 'characters that are not in the alphabet'


class TokenReader(Reader):
    """Packed rows, as `python -m mim_jax.tools.tokenize` writes them.

    A record is an array of ids: of codes [*shape], of text [3, n] = (ids, segment, bytes of each token), see `TextReader`.

    Args:
        shape: of a row: (n,), or (h, w) of codes that lie on a grid.
        vocab: number of ids.
        tokenizer: what made them of text; '' = they are codes. See `open_vocabulary`.
        alphabet: of the tokenizer 'characters'.

    Raises:
        InputError: an option out of range, or an unknown tokenizer.
    """

    media = 'tokens'

    def __init__(self, *, shape: Sequence[int] = (), vocab: int = 0, tokenizer: str = '', alphabet: str = ''):
        if not shape or min(shape) < 1 or vocab < 1:
            raise InputError(
                f'data.reader: shape={tuple(shape)}, vocab={vocab}: every number has to be above 0; '
                'training fills them in where they are () and 0 and data.path is a folder of mim_jax.tools.tokenize'
            )
        self.shape, self.vocab = tuple(shape), vocab
        self.vocabulary: Vocabulary | None = open_vocabulary(tokenizer, alphabet) if tokenizer else None
        if self.vocabulary and self.vocabulary.size != vocab:
            raise InputError(
                f'data.reader.vocab={vocab}, but data.reader.tokenizer={tokenizer} has {self.vocabulary.size} ids'
            )

    @property
    def row(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each array of a row: ids i32[N] (a grid row by row); of text also segment i32[N] and bytes i32[].

        Segments number the documents of a row from 1 on, 0 is padding; bytes of UTF-8 is what all of them were.
        """
        ids = dict(ids=((math.prod(self.shape),), 'int32'))
        return ids | dict(segment=ids['ids'], bytes=((), 'int32')) if self.vocabulary else ids

    def encode(self, text: str | bytes) -> np.ndarray:
        """Text to ids i32[n]."""
        return self._text().encode(text)

    def decode(self, ids: np.ndarray) -> str:
        """Ids i32[n] to text; an id that stands for none becomes U+FFFD."""
        return self._text().decode(ids)

    def _text(self) -> Vocabulary:
        if self.vocabulary is None:
            raise InputError('data.reader.tokenizer is empty: these ids are codes, not text')
        return self.vocabulary

    def arrange(self, source: Source) -> Source:
        """The source as it is, after a look at what its index says.

        Raises:
            InputError: it was made for another shape or vocabulary.
        """
        mine = dict(shape=list(self.shape), vocab=self.vocab)
        return agree(source, {f'data.reader.{name}': (name, value) for name, value in mine.items()})

    @classmethod
    def settle(cls, options: Mapping, records: Callable[..., Source]) -> dict:
        """Shape, vocab, tokenizer and alphabet of the shards, unless `options` say a vocab."""
        if options.get('vocab'):
            return {}
        tokens = records().tokens
        found = {key: tokens[key] for key in ('shape', 'vocab', 'tokenizer', 'alphabet') if key in tokens}
        return found | {'shape': tuple(found['shape'])} if 'shape' in found else found

    def __call__(self, data: bytes | np.ndarray, draw: tuple[int, int] | None, out: dict) -> tuple[str, ...]:
        """Fills rows i32[1, N] of out['ids'], out['segment'], and out['bytes'] i32[1]; gives whether characters were unknown."""
        array = load(data)
        shape = (3, *self.shape) if self.vocabulary else self.shape
        if array.shape != shape or array.dtype.kind not in 'iu':
            raise Unreadable(f'{array.dtype} of shape {list(array.shape)}; it has to be ids of shape {list(shape)}')
        ids = array[0] if self.vocabulary else array.reshape(-1)
        if ids.min() < 0 or ids.max() >= self.vocab:
            raise Unreadable(f'ids from {ids.min()} to {ids.max()}, but data.reader.vocab={self.vocab}')
        out['ids'][0] = ids
        if not self.vocabulary:
            return ()
        out['segment'][0], out['bytes'][0] = array[1], array[2].sum()
        unknown = self.vocabulary.unknown
        return (UNKNOWN,) if unknown is not None and ((ids == unknown) & (array[1] > 0)).any() else ()


def agree(source: Source, wanted: Mapping[str, tuple[str, object]]) -> Source:
    """The source, after a look at its index.

    Args:
        wanted: what its index has to say, {key of the config: (name in the index, value)}.

    Raises:
        InputError: it says something else.
    """
    for key, (name, mine) in wanted.items():
        if (has := source.tokens.get(name, mine)) != mine:
            raise InputError(f'{key}={mine}, but the shards of {source.path} were made with {has}')
    return source


def load(data: bytes | np.ndarray) -> np.ndarray:
    """A record as the array it is.

    Raises:
        ValueError, EOFError: it is not.
    """
    return data if isinstance(data, np.ndarray) else np.load(BytesIO(data), allow_pickle=False)


def save(array: np.ndarray) -> bytes:
    """A record as bytes, in the smallest type that holds it. The inverse of `load`."""
    file = BytesIO()
    np.save(file, array.astype(np.min_scalar_type(int(array.max(initial=0)))))
    return file.getvalue()
