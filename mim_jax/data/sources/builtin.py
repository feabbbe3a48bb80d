"""Data that comes with the install: `builtin:digits`, scikit-learn's 1797 real handwritten digits of 8 x 8 pixels."""

import numpy as np

from mim_jax.data.sources.base import Labelled, Labels, Record
from mim_jax.errors import InputError

TEST_SHARE = 359  # of 1797


class Digits(Labelled):
    """u8[8, 8] images scaled from 0..16 to 0..255; 1438 to train, 359 to test, one fixed split."""

    def __init__(self, split: str = 'train'):
        from sklearn.datasets import load_digits  # slow to import

        data = load_digits()
        order = np.random.RandomState(0).permutation(len(data.target))  # this legacy stream never changes
        self.split, self._rows = split, order[:-TEST_SHARE] if split == 'train' else order[-TEST_SHARE:]
        self.images = np.round(data.images[self._rows] * (255 / 16)).astype(np.uint8)
        self.labels = Labels(data.target[self._rows].astype(np.int32), [str(i) for i in range(10)])

    def __getitem__(self, index: int) -> Record:
        return Record(self.name(index), self.images[index], int(self.labels.ids[index]))

    def name(self, index: int) -> str:
        return f'digits:{self._rows[index]}'


def builtin(rest: str, labels: str) -> Digits:
    """The source of `builtin:NAME[:split]`.

    Raises:
        InputError: no such name or split.
    """
    name, _, split = rest.partition(':')
    if name != 'digits' or split not in ('', 'train', 'test'):
        raise InputError(f'no builtin:{rest}: there are builtin:digits and builtin:digits:test')
    source = Digits(split or 'train')
    if labels == 'none':
        source.labels = Labels(np.full(len(source), -1, np.int32))
    return source
