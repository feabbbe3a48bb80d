"""Documents inside the records of another source."""

import re

import numpy as np

from mim_jax.data.sources.base import Record, Source
from mim_jax.errors import InputError

_ALL = 1 << 62  # an end after every other


class Documents(Source):
    """Parts of records that are text.

    Args:
        source: records of bytes.
        spans: i64[n, 4] = (record, first byte, byte after the last, line of the first byte or 0 = the record is one document).
    """

    def __init__(self, source: Source, spans: np.ndarray):
        self.source, self.spans, self._last = source, spans, None
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __getstate__(self):
        return self.__dict__ | dict(_last=None)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Record:
        number, start, end, _ = map(int, self.spans[index])
        last = self._last
        if last is None or last[0] != number:
            self._last = last = number, self.source[number]  # the next document is most often in the same record
        return Record(self.name(index), last[1].data[start:end], last[1].label)

    def name(self, index: int) -> str:
        number, _, _, line = map(int, self.spans[index])
        return self.source.name(number) + (f':{line}' if line else '')

    def cut(self, share: float) -> tuple['Documents', 'Documents']:
        """A single document as two, the second with `share` of it: after the end of a line, or else of a character.

        Raises:
            InputError: either part would be empty.
        """
        (number, start, end, line), data = self.spans[0].tolist(), self[0].data
        if not data:
            raise InputError(f'{self.name(0)} is empty')
        at = round(len(data) * (1 - share))
        at = data.find(b'\n', at, (at + len(data)) // 2) + 1 or at
        while at < len(data) and data[at] & 0xC0 == 0x80:  # amid a character
            at += 1
        if not 0 < at < len(data):
            raise InputError(f'data.holdout={share} of {self.name(0)} with {len(data)} bytes leaves one part empty')
        first, middle = max(1, line), start + at
        parts = (number, start, middle, first), (number, middle, end, first + data.count(b'\n', 0, at))
        return tuple(Documents(self.source, np.array([part])) for part in parts)


def divided(source: Source, begins: re.Pattern[bytes] | None) -> Documents:
    """The documents of `source`: one begins where a record does, and wherever `begins` matches."""
    if not begins:
        return Documents(source, np.array([[0, 0, _ALL, 0]]) + np.arange(len(source))[:, None] * [1, 0, 0, 0])
    spans = []
    for number in range(len(source)):
        try:
            data = source[number].data
        except (ValueError, OSError):  # whoever reads the document is told again
            data = b''
        found = [match.start() for match in begins.finditer(data)]
        starts = np.unique([0, *(start for start in found if start < len(data))])
        lines = np.searchsorted(np.flatnonzero(np.frombuffer(data, np.uint8) == ord('\n')), starts) + 1
        spans.append(np.stack([np.full_like(starts, number), starts, np.append(starts[1:], _ALL), lines], 1))
    return Documents(source, np.concatenate(spans))
