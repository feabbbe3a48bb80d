"""An encoder or a whole network from another run, to go on with: fine-tuning, or the next stage of a recipe."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.checkpoint import Checkpoints
from mim_jax.errors import InputError
from mim_jax.step import TrainState


def check(path: str) -> None:
    """Looks whether a run is there, before anything slow.

    Raises:
        InputError: it is not.
    """
    if path and not any((Path(path).expanduser() / 'checkpoints').glob('[0-9]*')):
        raise InputError(f'config.init={path} has no checkpoints: give the workdir of a run that has saved one')


def warm_start(state: TrainState, path: str, part: str = 'encoder') -> TrainState:
    """The state with a part of the newest checkpoint in workdir `path`, its average where it has one; the rest stays.

    Args:
        part: 'encoder', or 'all' arrays of the network, which may have more of them there.

    Raises:
        InputError: no checkpoint, no encoder in it, or one of another shape.
    """
    given = parameters(path)
    if part == 'encoder' and (given := encoder_of(given)) is None:
        raise InputError(f'config.init={path}: its checkpoint has no encoder')
    params = replaced(state.params, given, path, part)
    return state.replace(params=params, ema=None if state.ema is None else jax.tree.map(jnp.copy, params))


def parameters(path: str | Path) -> dict:
    """Those of the newest checkpoint in workdir `path`, its average of them where it keeps one."""
    with contextlib.closing(Checkpoints(Path(path).expanduser(), read_only=True)) as checkpoints:
        saved, _ = checkpoints.read()
    return saved['ema'] or saved['params']


def encoder_of(tree: dict) -> dict | None:
    """The first subtree called encoder."""
    if 'encoder' in tree:
        return tree['encoder']
    inner = (encoder_of(value) for value in tree.values() if isinstance(value, dict))
    return next((found for found in inner if found is not None), None)


def replaced(params: dict, given: dict, path: str, part: str) -> dict:
    """`params` with each leaf below encoder, or for 'all' every one, replaced by the given one, laid out over devices as it was."""

    network = 'network' if part == 'all' else part

    def pick(where, leaf):
        names, value = [key.key for key in where], given
        if part == 'encoder' and part not in names:
            return leaf
        for name in names if part == 'all' else names[names.index(part) + 1 :]:
            value = value.get(name) if isinstance(value, dict) else None
        if value is None or np.shape(value) != leaf.shape:
            there = 'no such array' if value is None else np.shape(value)
            raise InputError(
                f'config.init={path}: {"/".join(names)} is {there} there and {leaf.shape} here: both need the same {network} and tokenizer'
            )
        return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(pick, params)
