"""Frozen features of a labelled data set: one pass of the encoder that kNN, linear probe and few-shot share."""

import math
import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from mim_jax import hosts, sharding
from mim_jax.errors import InputError

POOLS = ('mean', 'cls', 'registers', 'tokens')
NO_LABEL = 'no image with a label in the {split} data: give it labels, or take the evaluations out of config.evals'


class Split(NamedTuple):
    """features f32[n, D] (f32[n, N, D] for pool 'tokens') and labels i32[n] of the rows that have a label."""

    features: np.ndarray
    labels: np.ndarray


class Features:
    """What the encoder makes of `data`, nothing hidden; the pass over the last parameters is kept.

    Args:
        objective: has `encode(batch) -> [B, E + N, D]` and `encoder.num_prefix` = E.
        data: LabelledData.
        pool: 'mean' of the valid patch tokens; 'cls', the class token (MAE does not train it); 'registers', the mean of those (UMD,
            arXiv 2406.17688); 'tokens', all patch tokens.
        batch_size: rows encoded at once, by all hosts together; the result does not depend on it.

    Raises:
        InputError: unknown pool, or a class token or registers that the encoder lacks.
    """

    def __init__(self, objective, data, *, pool: str = 'mean', batch_size: int = 256):
        if pool not in POOLS:
            raise InputError(f'evaluation pool {pool!r} is not one of {", ".join(POOLS)}')
        if pool == 'cls' and not objective.encoder.class_token:
            raise InputError(
                "evaluation pool 'cls' needs a class token: set config.encoder.class_token, or use pool='mean'"
            )
        if pool == 'registers' and not objective.encoder.registers:
            raise InputError("evaluation pool 'registers' needs some: set config.encoder.registers, or use pool='mean'")
        self.objective, self.data, self.pool, self.batch_size = objective, data, pool, batch_size
        self._encode = jax.jit(self._pooled)
        self._init = jax.jit(self._fresh)
        self._leaves: list[weakref.ref] = []
        self._splits: tuple[Split, Split] | None = None

    def __call__(self, params: dict) -> tuple[Split, Split]:
        """Features of the train and of the validation split, kept until other parameters are given."""
        leaves = jax.tree.leaves(params)
        if list(map(id, leaves)) != [id(ref()) for ref in self._leaves]:
            self._splits, self._leaves = self.extract(params), [weakref.ref(leaf) for leaf in leaves]
        return self._splits

    def extract(self, params: dict) -> tuple[Split, Split]:
        """As a call, but nothing is kept.

        Raises:
            InputError: a split without a labelled row.
        """
        return (
            collect(self.stream(params, self.data.train(self.batch_size, seed=0, shuffle=False)), 'training'),
            collect(self.stream(params, self.data.val(self.batch_size)), 'validation'),
        )

    def stream(self, params: dict, batches: Iterable[dict]) -> Iterator[tuple[Array, Array, Array]]:
        """For each NumPy batch, on the device: features f32[B, D] (or [B, N, D]), label i32[B], whether a row counts bool[B]."""
        for batch in batches:
            yield self._encode(params, put(batch, self.batch_size))

    def untrained(self, seed: int = 0) -> dict:
        """Parameters of a fresh encoder: the ones a run of this seed starts from."""
        batch = next(iter(self.data.val(self.batch_size)))
        return self._init(seed, put({k: v[:1] for k, v in batch.items()}, self.batch_size))

    def _view(self, batch: dict) -> dict:
        return self.data.augment(jax.random.key(0), batch, train=False)

    def _fresh(self, seed: Array, batch: dict) -> dict:
        return self.objective.init(jax.random.key(seed), self._view(batch), method='encode')['params']

    def _pooled(self, params: dict, batch: dict) -> tuple[Array, Array, Array]:
        batch = self._view(batch)
        z = self.objective.apply({'params': params}, batch, method='encode').astype(jnp.float32)  # f32[B, E + N, D]
        encoder = self.objective.encoder
        if self.pool == 'registers':
            features = z[:, encoder.num_prefix - encoder.registers : encoder.num_prefix].mean(1)
        else:
            features = z[:, 0] if self.pool == 'cls' else z[:, encoder.num_prefix :]
        if self.pool == 'mean':
            valid = self.objective.tokenizer(batch).valid
            features = features.mean(1, where=None if valid is None else valid[..., None])
        return features, batch['label'], batch['valid'] & (batch['label'] >= 0)


_alive: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def shared(objective, data, **options) -> Features:
    """The one `Features` of these parts and options, so that evaluators of the same data share its pass."""
    key = (id(objective), id(data), *sorted(options.items()))  # ids stay taken: the value holds both parts
    return _alive.setdefault(key, Features(objective, data, **options))


def put(batch: dict, rows: int, clips: int = 1) -> dict:
    """This host's share of a NumPy batch on the device(s), filled up with rows that do not count.

    Args:
        batch: the share of a batch as the factories of `LabelledData` give it.
        rows: of the whole batch, as asked for.
        clips: rows that belong together.

    Under a mesh the rows are shared out over its data and fsdp axes, and filled up to a multiple of this host's part.
    """
    mesh = jax.sharding.get_mesh()
    share = hosts.share(mesh)
    rows, unit = max(-(-rows // share.count), len(next(iter(batch.values())))), math.lcm(len(share.chunks), clips)
    rows = -(-rows // unit) * unit
    batch = {k: np.pad(v, [(0, rows - len(v))] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}
    return batch if mesh.empty else sharding.put(batch, mesh)


def spread(batch: dict) -> dict:
    """NumPy rows that all hosts hold, on the device(s): shared out, and filled up at the end to a multiple of the devices."""
    mesh = jax.sharding.get_mesh()
    share, count = hosts.share(mesh), len(next(iter(batch.values())))
    size = -(-count // share.total) * share.total
    batch = {k: np.pad(v, [(0, size - count)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}
    return batch if mesh.empty else sharding.put({k: v[share.of(size)[1]] for k, v in batch.items()}, mesh)


def everywhere(found):
    """Arrays of devices as NumPy arrays, on all hosts."""
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(found, tiled=True))


def gather(found, batch: dict, rows: int, clips: int = 1):
    """What was computed from `put(batch, rows, clips)`, row by row: NumPy arrays of the rows of all hosts, without those filled up."""
    real = put(dict(real=np.ones(len(next(iter(batch.values()))), bool)), rows, clips)['real']
    found, real = everywhere((found, real))
    return jax.tree.map(lambda x: x[real[::clips]], found)


def records(batches: Iterable[dict], rows: int) -> dict:
    """The first `rows` of NumPy batches, on all hosts."""
    batch = next(iter(batches))
    whole = batch if jax.process_count() == 1 else gather(put(batch, rows), batch, rows)
    return {name: x[:rows] for name, x in whole.items()}


def collect(encoded: Iterable[tuple[Array, Array, Array]], split: str) -> Split:
    """The labelled rows of all hosts as NumPy arrays."""
    features, labels = [], []
    for batch in encoded:
        z, label, counts = everywhere(batch)
        features.append(z[counts])
        labels.append(label[counts])
    if not sum(map(len, labels)):
        raise InputError(NO_LABEL.format(split=split))
    return Split(np.concatenate(features), np.concatenate(labels))
