"""Arrays: .npz with image(s) or video(s) and label(s), or one .npy; [N, H, W(, C)], of videos [N, T, H, W(, C)]."""

from pathlib import Path

import numpy as np

from mim_jax.data.sources.base import Labelled, Record, number
from mim_jax.errors import InputError

_NAMES = dict(image=('image', 'images', 'x', 'data', 'x_train'), video=('video', 'videos', 'clips', 'x', 'data'))
_AXES = dict(image='[N, H, W] or [N, H, W, C]', video='[N, T, H, W] or [N, T, H, W, C]')
_NDIM = dict(image=(3, 4), video=(4, 5))
_LABELS = ('label', 'labels', 'y', 'target', 'y_train')


class Arrays(Labelled):
    """Records [H, W(, C)] or [T, H, W(, C)] of an array file; a .npy is mapped into memory, not read."""

    def __init__(self, path: Path, labels: str, class_names: list[str] | None, media: str = 'image'):
        if media not in _NAMES:
            raise InputError(f'{path}: arrays of {media} are not read; give text files, .parquet, .jsonl or .csv')
        self.path, self.given = path, (labels, class_names, media)
        self.arrays, values = _read(path, labels, media)
        if self.arrays.ndim not in _NDIM[media]:
            raise InputError(f'{path}: {media}s are {list(self.arrays.shape)}; they have to be {_AXES[media]}')
        if values is not None and len(values) != len(self.arrays):
            raise InputError(f'{path}: {len(self.arrays)} {media}s but {len(values)} labels')
        values = [None] * len(self.arrays) if values is None else values
        self.labels = number(values, class_names, str(path))

    def __reduce__(self):
        return Arrays, (self.path, *self.given)  # a worker opens the file itself

    def __getitem__(self, index: int) -> Record:
        return Record(self.name(index), np.asarray(self.arrays[index]), int(self.labels.ids[index]))

    def name(self, index: int) -> str:
        return f'{self.path.name}:{index}'


def _read(path: Path, labels: str, media: str) -> tuple[np.ndarray, list | None]:
    """Records and labels of a file."""
    try:
        if path.suffix == '.npy':
            return np.load(path, mmap_mode='r', allow_pickle=False), None
        with np.load(path, allow_pickle=False) as file:
            key = next((k for k in _NAMES[media] if k in file), None) or _only_one(file, path, media)
            column = next((k for k in _LABELS if k in file), None) if labels == 'auto' else labels
            if labels not in ('auto', 'none') and labels not in file:
                raise InputError(f'data.labels={labels}: {path} has no such array, only {", ".join(file)}')
            return file[key], None if column in (None, 'none') else file[column].tolist()
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{path}: not a NumPy file without pickled objects ({error})') from error


def _only_one(file, path: Path, media: str) -> str:
    """The one array that can be what is asked for, where none has the usual name."""
    foreign = {key for other in _NAMES if other != media for key in _NAMES[other]} - set(_NAMES[media])
    keys = [key for key in file if file[key].ndim in _NDIM[media] and key not in foreign]
    if len(keys) != 1:
        found = ', '.join(f'{key} {list(file[key].shape)}' for key in file)
        raise InputError(f"{path}: no array '{media}' or '{media}s' among {found}")
    return keys[0]
