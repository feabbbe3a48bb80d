"""A trained autoencoder of images as a codec: pixels to codes, and codes to pixels."""

import contextlib
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from mim_jax import build, compile, warm_start
from mim_jax.checkpoint import Checkpoints
from mim_jax.data import Source, one_pass
from mim_jax.data.sources import Record
from mim_jax.errors import InputError


class Autoencoder:
    """The newest checkpoint of a run with the objective `Autoencoding`, its average of the parameters where it keeps one.

    Attributes:
        reader: of its records.
        vocab: number of codes.
        grid: (h, w) of the codes of an image.
        decode: `ids i32[B, h, w] -> uint8[B, H, W, C]`, jitted.
        encode: `batch -> i32[B, h, w]` of records as the pipeline delivers them, seen as in evaluation; jitted. With
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
        with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
            saved, _ = checkpoints.read()
        objective, augment = build.objective(self.config), build.augment(self.config)
        run = partial(objective.apply, {'params': jax.device_put(saved['ema'] or saved['params'])})

        @partial(jax.jit, static_argnames='flip')
        def encode(batch: dict, flip: bool = False) -> Array:
            batch = augment(jax.random.key(0), batch, train=False)
            image = batch[objective.field]
            return run({objective.field: image[..., ::-1, :] if flip else image}, method='codes')

        self.encode = encode
        self.decode = jax.jit(lambda ids: jnp.round(run(ids, method='decode') * 255).astype(jnp.uint8))
        self.reader = build.reader(self.config, **self.config.data.eval_reader)
        self.vocab = objective.bottleneck.size
        self.grid = jax.eval_shape(encode, compile.batch_spec(self.config, 1)).shape[1:]


class Codes(Source):
    """The codes of all images of another source, made at once and kept; what cannot be read is `skipped`.

    Args:
        source: images, with their labels.
        codec: makes the codes.
        flips: after each image comes its mirror image.
        batch_size: images that are encoded at once.
    """

    def __init__(self, source: Source, codec: Autoencoder, flips: bool = False, batch_size: int = 256):
        self.source, self.num_classes, self.class_names = source, source.num_classes, source.class_names
        ids, labels, valid, self.skipped = [], [], [], []
        for batch, report in one_pass(source, codec.reader, batch_size=batch_size):
            views = [np.asarray(codec.encode(batch, flip=flip)) for flip in (False, True)[: 1 + flips]]
            ids.append(np.stack(views, 1)[batch['valid']])
            labels.append(batch['label'][batch['valid']])
            valid.append(batch['valid'])
            self.skipped.extend(report.bad)
        self.ids = np.concatenate(ids).astype(np.min_scalar_type(codec.vocab - 1))  # [n, views, h, w]
        self.labels, self.rows = np.concatenate(labels), np.flatnonzero(np.concatenate(valid))

    def __len__(self) -> int:
        return self.ids.shape[0] * self.ids.shape[1]

    def __getitem__(self, index: int) -> Record:
        image, view = divmod(index, self.ids.shape[1])
        return Record(self.name(index), self.ids[image, view], int(self.labels[image]))

    def name(self, index: int) -> str:
        image, view = divmod(index, self.ids.shape[1])
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
