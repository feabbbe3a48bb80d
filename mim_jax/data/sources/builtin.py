"""Data that comes with the install: scikit-learn's 1797 real handwritten digits of 8 x 8 pixels, still or moving; Python's help."""

import numpy as np

from mim_jax.data.sources.base import Labelled, Labels, Record, another
from mim_jax.errors import InputError

TEST_SHARE = 359  # of 1797
MOTIONS = ('resting', 'horizontal', 'vertical', 'diagonal')
FRAMES, SIDE, DIGIT = 20, 64, 24  # of a video, pixels of a frame, pixels of a digit


class Digits(Labelled):
    """u8[8, 8] images scaled from 0..16 to 0..255; 1438 to train, 359 to test, one fixed split."""

    media = 'image'

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


class MovingDigits(Digits):
    """u8[20, 64, 64] videos of one digit that moves straight on and bounces off the walls (Moving MNIST, arXiv 1502.04681).

    Each digit moves in each of the four ways of `MOTIONS`; the label is digit * 4 + motion, so one frame cannot tell it.
    Start and speed are drawn from the record's number.
    """

    media = 'video'

    def __init__(self, split: str = 'train'):
        super().__init__(split)
        self.digits = self.labels.ids
        ids = (self.digits[:, None] * len(MOTIONS) + np.arange(len(MOTIONS))).ravel()
        self.labels = Labels(ids.astype(np.int32), [f'{digit} {motion}' for digit in range(10) for motion in MOTIONS])

    def __getitem__(self, index: int) -> Record:
        digit, motion = divmod(index, len(MOTIONS))
        return Record(self.name(index), film(self.images[digit], MOTIONS[motion], index), int(self.labels.ids[index]))

    def name(self, index: int) -> str:
        digit, motion = divmod(index, len(MOTIONS))
        return f'moving_{super().name(digit)} {MOTIONS[motion]}'


def film(image: np.ndarray, motion: str, seed: int) -> np.ndarray:
    """u8[20, 64, 64]: the digit u8[8, 8], enlarged, on its way."""
    rng, room = np.random.RandomState(seed), SIDE - DIGIT  # this legacy stream never changes
    where, speed = rng.uniform(0, room, 2), rng.uniform(2, 5, 2) * rng.choice((-1, 1), 2)
    speed = speed * dict(resting=(0, 0), horizontal=(0, 1), vertical=(1, 0), diagonal=(1, 1))[motion]
    way = (where + np.arange(FRAMES)[:, None] * speed) % (2 * room)
    way = np.round(np.where(way > room, 2 * room - way, way)).astype(int)  # bounces
    digit, frames = image.repeat(DIGIT // 8, 0).repeat(DIGIT // 8, 1), np.zeros((FRAMES, SIDE, SIDE), np.uint8)
    for frame, (top, left) in zip(frames, way, strict=True):
        frame[top : top + DIGIT, left : left + DIGIT] = digit
    return frames


class DigitLevels(Digits):
    """The same with their 17 grey levels as tokens, i32[8, 8] of 0 to 16."""

    media = 'tokens'
    path, tokens = 'builtin:digit_levels', dict(shape=[8, 8], vocab=17)  # as an index of shards says it

    def __getitem__(self, index: int) -> Record:
        return Record(
            self.name(index), np.round(self.images[index] * (16 / 255)).astype(np.int32), int(self.labels.ids[index])
        )

    @staticmethod
    def decode(rows: np.ndarray) -> np.ndarray:
        """i32[R, 64] to uint8[R, 8, 8, 1]."""
        return np.round(np.asarray(rows).reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)


class PythonTopics(Labelled):
    """What `help('TOPIC')` says of each of Python's topics, some 80 documents of English; every tenth is for the test."""

    media = 'text'

    def __init__(self, split: str = 'train'):
        from pydoc_data.topics import topics

        self.names = [name for i, name in enumerate(sorted(topics)) if (i % 10 == 9) == (split == 'test')]
        self.texts = [topics[name].encode() for name in self.names]
        self.labels = Labels(np.full(len(self.names), -1, np.int32))

    def __getitem__(self, index: int) -> Record:
        return Record(self.name(index), self.texts[index], -1)

    def name(self, index: int) -> str:
        return f'python_topics:{self.names[index]}'


SETS = dict(digits=Digits, digit_levels=DigitLevels, moving_digits=MovingDigits, python_topics=PythonTopics)


def builtin(rest: str, labels: str, media: str = 'image') -> Digits | PythonTopics:
    """The source of `builtin:NAME[:split]`.

    Raises:
        InputError: no such name or split, or none of this medium.
    """
    name, _, split = rest.partition(':')
    if name not in SETS or split not in ('', 'train', 'test'):
        raise InputError(f'no builtin:{rest}: there are {" and ".join(f"builtin:{n}, builtin:{n}:test" for n in SETS)}')
    if SETS[name].media != media:
        raise InputError(another(f'builtin:{name} holds', SETS[name].media, media))
    source = SETS[name](split or 'train')
    if labels == 'none':
        source.labels = Labels(np.full(len(source), -1, np.int32))
    return source
