"""Hugging Face data sets: `hf:NAME[:split]`, or a folder saved by `datasets.save_to_disk` (an optional extra)."""

from pathlib import Path

from mim_jax.data.sources.base import Labelled, Labels, Record, Video, number, text_column
from mim_jax.errors import InputError

_LABELS = ('label', 'labels', 'fine_label')


def _library():
    try:
        import datasets
    except ImportError as error:
        raise InputError("hf: paths need the datasets library: pip install 'mim_jax[hub]'") from error
    return datasets


def _load(name: str):
    """A DatasetDict or Dataset, from disk or the hub's cache."""
    datasets = _library()
    try:
        return datasets.load_from_disk(name) if is_saved(Path(name)) else datasets.load_dataset(name)
    except Exception as error:  # the library raises a dozen kinds; each means that this name cannot be read
        raise InputError(f'hf:{name}: {" ".join(str(error).split())[:300]}') from error


def is_saved(path: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return (path / 'dataset_dict.json').exists() or (path / 'state.json').exists()


def splits(name: str) -> set[str]:
    """The splits it has; none for a saved single split."""
    loaded = _load(name)
    return set(loaded) if isinstance(loaded, dict) else set()


class HuggingFace(Labelled):
    """One split; images and videos stay encoded, texts are UTF-8."""

    def __init__(self, rest: str, labels: str, class_names: list[str] | None, media: str = 'image'):
        datasets = _library()
        name, _, split = rest.rpartition(':') if ':' in rest else (rest, '', '')
        loaded = _load(name)
        if isinstance(loaded, dict):
            split = split or 'train'
            if split not in loaded:
                raise InputError(f'hf:{rest}: no split {split!r}, only {", ".join(loaded)}')
            loaded = loaded[split]
        features = loaded.features
        kind = dict(image=datasets.Image, video=datasets.Video, text=datasets.Value)[media]
        found = [key for key, feature in features.items() if isinstance(feature, kind)]
        if media == 'text':
            found = [text_column([key for key in found if features[key].dtype.endswith('string')], f'hf:{rest}')]
        if not found:
            kinds = ', '.join(f'{key} ({type(feature).__name__})' for key, feature in features.items())
            raise InputError(f'hf:{rest}: no {media} among its features {kinds}')
        self.column, self.media, self.where = (
            found[0],
            media,
            f'{Path(name).name}:{split}' if split else Path(name).name,
        )
        if labels not in ('auto', 'none') and labels not in features:
            raise InputError(f'data.labels={labels}: hf:{rest} has only {", ".join(features)}')
        auto = next((key for key in _LABELS if key in features), None)
        column = {'auto': auto, 'none': None}.get(labels, labels)
        self.labels = _labels(loaded, column, class_names, rest)
        self.data = loaded.select_columns([self.column])
        if media != 'text':
            self.data = self.data.cast_column(self.column, kind(decode=False))

    def __getitem__(self, index: int) -> Record:
        value = self.data[index][self.column]
        data = (value or '').encode() if self.media == 'text' else value['bytes']
        if data is None:
            data = Video(value['path']) if self.media == 'video' else Path(value['path']).read_bytes()
        return Record(self.name(index), data, int(self.labels.ids[index]))

    def name(self, index: int) -> str:
        return f'{self.where}:{index}'


def _labels(loaded, column: str | None, class_names: list[str] | None, where: str) -> Labels:
    if column is None:
        return number([None] * len(loaded), None, where)
    return number(
        list(loaded[column]),
        getattr(loaded.features[column], 'names', None) or class_names,
        f'hf:{where}, column {column}',
    )
