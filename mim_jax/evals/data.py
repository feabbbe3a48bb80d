"""What an evaluator that needs labels is given."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelledData:
    """A training and a validation set, as factories of NumPy batches (the pipeline's layout, before augmentation).

    Attributes:
        train: `(batch_size, seed, shuffle=True, steps=None, reader={}) -> iterator`; one pass unless `steps` says otherwise.
        val: `(batch_size, reader={}, count=0) -> iterator` over one pass in order, of all records or of `count` of them, `evenly` spaced;
            the last batch may be short. `reader` holds options of the reader, over those of the config; a record gives one row
            unless its `clips` say more.
        num_train: records in the training set.
        num_classes: labels are 0 to num_classes - 1, or -1 = unlabelled.
        image_size: (h, w) after augmentation.
        mean: of each channel, as the augmentation subtracts it.
        std: of each channel, as the augmentation divides by it.
        augment: `(key, batch, *, train, **options) -> batch` on the device; options override the config's.
        class_names: of the classes, where they have names.
        say: `(line)`, where an evaluation that takes long tells how far it is.
        decode: rows of ids i32[R, N] to R texts or to images uint8[R, H, W, C], or to those of normalised latents f32[R, h, w, C];
            None where nothing is known to.
    """

    train: Callable
    val: Callable
    num_train: int
    num_classes: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Callable
    class_names: list[str] | None = None
    decode: Callable | None = None
    say: Callable[[str], None] = logging.getLogger(__name__).info


def evenly(size: int, count: int) -> np.ndarray:
    """i64[count]: numbers of `count` of `size` records, or of all where there are fewer, from the first to the last.

    Records often come in order, of classes or of documents: the first ones are no sample of them.
    """
    return np.linspace(0, size - 1, min(size, count)).round().astype(int)
