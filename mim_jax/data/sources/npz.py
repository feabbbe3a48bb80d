"""Arrays: .npz with image(s) and label(s), or one .npy [N, H, W] or [N, H, W, C]."""

from pathlib import Path

import numpy as np

from mim_jax.data.sources.base import Labelled, Record, number
from mim_jax.errors import InputError

_IMAGES = ('image', 'images', 'x', 'data', 'x_train')
_LABELS = ('label', 'labels', 'y', 'target', 'y_train')


class Arrays(Labelled):
    """Records [H, W] or [H, W, C] of an array file; a .npy is mapped into memory, not read."""

    def __init__(self, path: Path, labels: str, class_names: list[str] | None):
        self.path, self.asked, self.given = path, labels, class_names
        self.images, values = _read(path, labels)
        if self.images.ndim not in (3, 4):
            raise InputError(f'{path}: images are {list(self.images.shape)}; they have to be [N, H, W] or [N, H, W, C]')
        if values is not None and len(values) != len(self.images):
            raise InputError(f'{path}: {len(self.images)} images but {len(values)} labels')
        values = [None] * len(self.images) if values is None else values
        self.labels = number(values, class_names, str(path))

    def __reduce__(self):
        return Arrays, (self.path, self.asked, self.given)  # a worker opens the file itself

    def __getitem__(self, index: int) -> Record:
        return Record(self.name(index), np.asarray(self.images[index]), int(self.labels.ids[index]))

    def name(self, index: int) -> str:
        return f'{self.path.name}:{index}'


def _read(path: Path, labels: str) -> tuple[np.ndarray, list | None]:
    """Images and labels of a file."""
    try:
        if path.suffix == '.npy':
            return np.load(path, mmap_mode='r', allow_pickle=False), None
        with np.load(path, allow_pickle=False) as file:
            key = next((k for k in _IMAGES if k in file), None) or _only_images(file, path)
            column = next((k for k in _LABELS if k in file), None) if labels == 'auto' else labels
            if labels not in ('auto', 'none') and labels not in file:
                raise InputError(f'data.labels={labels}: {path} has no such array, only {", ".join(file)}')
            return file[key], None if column in (None, 'none') else file[column].tolist()
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{path}: not a NumPy file without pickled objects ({error})') from error


def _only_images(file, path: Path) -> str:
    """The one array that can be images, where none has the usual name."""
    keys = [key for key in file if file[key].ndim in (3, 4)]
    if len(keys) != 1:
        raise InputError(f"{path}: no array 'image' or 'images' among {', '.join(file)}")
    return keys[0]
