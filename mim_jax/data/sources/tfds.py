"""TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow: `tfds:NAME[:split]` (an optional extra)."""

from mim_jax.data.sources.base import Record, Source
from mim_jax.errors import InputError


def _library():
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError("tfds: paths need TensorFlow Datasets: pip install 'mim_jax[tfds]'") from error
    return tensorflow_datasets


class TFDS(Source):
    """One split of a prepared data set; images stay encoded."""

    def __init__(self, rest: str, labels: str, media: str = 'image'):
        if media != 'image':
            raise InputError(
                f'tfds:{rest}: only images are read from TensorFlow Datasets, but the config is one of {media}s'
            )
        tfds = _library()
        self.dataset, _, split = rest.partition(':')
        self.split = split or 'train'
        try:
            builder = tfds.builder(self.dataset)
            features = dict(builder.info.features)
            self.image = next(
                (key for key in ('image', *features) if isinstance(features.get(key), tfds.features.Image)), None
            )
            skip = {self.image: tfds.decode.SkipDecoding()} if self.image else {}
            self.data = builder.as_data_source(split=self.split, decoders=skip)
        except Exception as error:  # the library raises a dozen kinds; each means that this name cannot be read
            raise InputError(f'tfds:{rest}: {str(error).strip().splitlines()[0]}') from error
        if self.image is None:
            raise InputError(f'tfds:{rest}: no image among its features {", ".join(features)}')
        if labels not in ('auto', 'none') and labels not in features:
            raise InputError(f'data.labels={labels}: tfds:{rest} has only {", ".join(features)}')
        self.column = {'auto': 'label' if 'label' in features else None, 'none': None}.get(labels, labels)
        kind = features[self.column] if self.column else None
        self.class_names = list(getattr(kind, 'names', None) or []) or None
        self.num_classes = getattr(kind, 'num_classes', None) or 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        row = self.data[index]
        return Record(self.name(index), row[self.image], int(row[self.column]) if self.column else -1)

    def name(self, index: int) -> str:
        return f'{self.dataset}:{self.split}:{index}'


def splits(name: str) -> set[str]:
    """The splits a prepared data set has."""
    try:
        return set(_library().builder(name).info.splits)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f'tfds:{name}: {str(error).strip().splitlines()[0]}') from error
