"""A trained autoencoder of images as a codec: pixels to codes or latents, and those to pixels."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from mim_jax import build, compile, warm_start
from mim_jax.data import Source, one_pass
from mim_jax.data.sources import Record
from mim_jax.errors import InputError


class Autoencoder:
    """The newest checkpoint of a run with the objective `Autoencoding`, its average of the parameters where it keeps one.

    Attributes:
        reader: of its records.
        vocab: number of codes; 0 = it makes latents.
        shape: (h, w) of the codes of an image, (h, w, C) of its latents.
        decode: `i32 or f32[B, *shape] -> uint8[B, H, W, C]`, jitted.
        encode: `batch -> i32 or f32[B, *shape]` of records as the pipeline delivers them, seen as in evaluation; jitted. With
            `flip=True` it is the mirror image.

    Args:
        workdir: of the run.

    Raises:
        InputError: there is no run, no checkpoint, or it is of another objective.
    """

    def __init__(self, workdir: str | Path):
        workdir = Path(workdir).expanduser()
        self.config = saved_config(workdir)
        if (name := self.config.objective.name) != 'Autoencoding':
            raise InputError(f'{workdir} is a run of the objective {name}, but codes need one of Autoencoding')
        warm_start.check(str(workdir))
        objective, augment = build.objective(self.config), build.augment(self.config)
        run = partial(objective.apply, {'params': jax.device_put(warm_start.parameters(workdir))})

        @partial(jax.jit, static_argnames='flip')
        def encode(batch: dict, flip: bool = False) -> Array:
            batch = augment(jax.random.key(0), batch, train=False)
            image = batch[objective.field]
            return run({objective.field: image[..., ::-1, :] if flip else image}, method='codes')

        self.encode = encode
        self.decode = jax.jit(lambda codes: jnp.round(run(codes, method='decode') * 255).astype(jnp.uint8))
        self.reader = build.reader(self.config, **self.config.data.eval_reader)
        self.vocab = objective.bottleneck.size
        self.shape = jax.eval_shape(encode, compile.batch_spec(self.config, 1)).shape[1:]


class Codes(Source):
    """The codes or latents of all images of another source, made at once and kept in a file; what cannot be read is `skipped`.

    Args:
        source: images, with their labels.
        codec: makes the codes.
        file: where they lie while they are needed.
        flips: after each image comes its mirror image.
        batch_size: images that are encoded at once.
    """

    def __init__(self, source: Source, codec: Autoencoder, file: Path, flips: bool = False, batch_size: int = 256):
        self.source, self.num_classes, self.class_names = source, source.num_classes, source.class_names
        kind = np.min_scalar_type(codec.vocab - 1) if codec.vocab else np.float16
        labels, valid, self.skipped = [], [], []
        with open(file, 'wb') as out, np.errstate(over='ignore'):
            for batch, report in one_pass(source, codec.reader, batch_size=batch_size):
                views = [np.asarray(codec.encode(batch, flip=flip)) for flip in (False, True)[: 1 + flips]]
                out.write(np.stack(views, 1)[batch['valid']].astype(kind).tobytes())
                labels.append(batch['label'][batch['valid']])
                valid.append(batch['valid'])
                self.skipped.extend(report.bad)
        self.labels, self.rows = np.concatenate(labels), np.flatnonzero(np.concatenate(valid))
        shape = (len(self.rows), 1 + flips, *codec.shape)
        self.codes = np.memmap(file, kind, 'r', shape=shape) if len(self.rows) else np.zeros(shape, kind)

    def moments(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel of latents; where all numbers of one are the same it is 1.

        Raises:
            InputError: they are not finite.
        """
        total = square = np.zeros(self.codes.shape[-1])
        for image in self.codes:
            flat = image.reshape(-1, len(total)).astype(np.float64)
            total, square = total + flat.sum(0), square + (flat**2).sum(0)
        count = max(self.codes.size // len(total), 1)
        mean = total / count
        with np.errstate(invalid='ignore'):
            std = np.sqrt(np.maximum(square / count - mean**2, 0))
        if not np.isfinite(std).all():
            raise InputError(
                'the autoencoder makes latents that are not finite as float16: train one with a larger config.bottleneck.weight'
            )
        return dict(mean=mean.tolist(), std=np.where(std > 0, std, 1).tolist())

    def __len__(self) -> int:
        return self.codes.shape[0] * self.codes.shape[1]

    def __getitem__(self, index: int) -> Record:
        image, view = divmod(index, self.codes.shape[1])
        return Record(self.name(index), self.codes[image, view], int(self.labels[image]))

    def name(self, index: int) -> str:
        image, view = divmod(index, self.codes.shape[1])
        return self.source.name(int(self.rows[image])) + ' mirrored' * view


def saved_config(workdir: Path) -> ConfigDict:
    """The config of a run.

    Raises:
        InputError: there is none.
    """
    try:
        saved = json.loads((workdir / 'config.json').read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f'{workdir} has no config.json that can be read: give the workdir of a run') from error
    return ConfigDict({key: value for key, value in saved.items() if key not in ('origin', 'environment')})
