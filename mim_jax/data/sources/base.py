"""What every source gives: random access to named, maybe labelled records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mim_jax.errors import InputError

TOKENIZE = 'python -m mim_jax.tools.tokenize DATA OUT'
MADE = dict(
    tokens=f'{TOKENIZE} writes tokens', latents=f'{TOKENIZE} --run=RUN writes latents, with a run of configs/kl.py'
)


class Video(NamedTuple):
    """A video that is not decoded yet."""

    file: str | bytes  # a path, or the bytes of a file
    start: float = 0.0  # seconds
    end: float | None = None  # None = the end of the file


class Record(NamedTuple):
    """One sample before decoding."""

    name: str  # what a list of bad samples shows: a path, or FILE:ROW
    data: bytes | np.ndarray | Video  # an encoded image or video, text, or an array of pixels or ids
    label: int  # -1 = unlabelled


class Labels(NamedTuple):
    """Labels as class numbers."""

    ids: np.ndarray  # i32[N], -1 = unlabelled
    names: list[str] | None = None  # of the classes, where they have names

    @property
    def num_classes(self) -> int:
        """0 = unlabelled."""
        return len(self.names) if self.names else int(self.ids.max(initial=-1)) + 1


class Source:
    """Random access to records; picklable, for the workers, and safe to read from several threads."""

    num_classes: int = 0  # 0 = unlabelled
    class_names: list[str] | None = None  # where the classes have names
    skipped: Sequence[tuple[str, str]] = ()  # (name, reason) of what was found unusable at once and is no record
    path: str | Path = ''
    tokens: Mapping = {}  # what an index of shards says of tokens or latents

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Record:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Name of a record, without reading it."""
        raise NotImplementedError


class Labelled(Source):
    """A source that knows all its labels beforehand."""

    labels: Labels

    def __len__(self) -> int:
        return len(self.labels.ids)

    @property
    def num_classes(self) -> int:
        return self.labels.num_classes

    @property
    def class_names(self) -> list[str] | None:
        return self.labels.names


class Subset(Source):
    """Some records of another source, in the order of `indices` i64[n]."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.path, self.tokens = source.path, source.tokens

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def another(what: object, holds: str, media: str) -> str:
    """The sentence where `what` holds another medium than the one that is asked for."""
    made = f'; {MADE[media]}' if media in MADE else ''
    return f'{what} {holds.rstrip("s")}s, but the config is one of {media.rstrip("s")}s{made}'


_TEXTS = ('text', 'content', 'document', 'sentence', 'body', 'article', 'story')
_NO_TEXTS = ('split', 'label', 'labels', 'label_name', 'class', 'target', 'category', 'id', 'url', 'path', 'name')


def text_column(strings: Sequence[str], where: str) -> str:
    """Which of the columns of strings holds the documents: one with a usual name, or the only one.

    Raises:
        InputError: it cannot be told.
    """
    named = [name for name in _TEXTS if name in strings]
    found = [name for name in strings if name not in _NO_TEXTS]
    if not named and len(found) != 1:
        raise InputError(
            f'{where}: which column is the text? It has to be called {_TEXTS[0]}, {_TEXTS[1]} or {_TEXTS[2]}, or be the '
            f'only one of strings; there are {", ".join(strings) or "none"}'
        )
    return (named or found)[0]


def number(values: Sequence, names: list[str] | None, where: str) -> Labels:
    """Class numbers of `values`: integers stay, strings are numbered in sorted order or as `names` says; None is -1.

    Raises:
        InputError: a value that is neither, or is no class of `names`.
    """
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return Labels(np.full(len(values), -1, np.int32))
    if all(issubclass(kind, (int, np.integer)) for kind in kinds):
        ids = np.array([-1 if value is None else value for value in values], np.int64)
        if names and ids.max() >= len(names):
            raise InputError(f'{where}: label {ids.max()}, but there are {len(names)} classes')
        return Labels(ids.astype(np.int32), names)
    if kinds != {str}:
        raise InputError(
            f'{where}: labels are {", ".join(sorted(k.__name__ for k in kinds))}; they have to be whole numbers or strings'
        )
    names = names or sorted({value for value in values if value is not None})
    index = {name: i for i, name in enumerate(names)}
    if strange := {value for value in values if value is not None} - index.keys():
        raise InputError(
            f'{where}: class {min(strange)!r} is not among the {len(names)} classes of the training records'
        )
    return Labels(np.array([-1 if value is None else index[value] for value in values], np.int32), names)
