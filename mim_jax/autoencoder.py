"""A trained autoencoder of images as a codec: pixels to codes, and codes to pixels."""

import contextlib
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from mim_jax import build, compile, warm_start
from mim_jax.checkpoint import Checkpoints
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
