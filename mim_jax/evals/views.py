"""How often a classifier is right, over one view of each record or the merged views of many."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.metrics import confusion_matrix

from mim_jax.errors import InputError
from mim_jax.evals.features import everywhere, put


class Answers(NamedTuple):
    """Merged logits f32[n, C] and labels i32[n] of the records that have a label."""

    logits: np.ndarray
    labels: np.ndarray

    @property
    def top1(self) -> float:
        """Share of records whose largest logit is the label's."""
        return float((self.logits.argmax(-1) == self.labels).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(optax.softmax_cross_entropy_with_integer_labels(self.logits, self.labels).mean())

    @property
    def confusion(self) -> np.ndarray:
        """i64[C, C]: records of class i answered as class j."""
        return confusion_matrix(self.labels, self.logits.argmax(-1), labels=range(self.logits.shape[1]))


def one_pass_of(reader: Mapping, clips: int) -> dict:
    """Options of the reader for a test: `clips` of each record, whatever training takes; a reader of images has no such option."""
    return {name: value for name, value in reader.items() if name != 'clips'} | ({'clips': clips} if clips > 1 else {})


def merged(task, augment: Callable, clips: int = 1, crops: int = 1) -> Callable:
    """`(params, batch) -> f32[B / clips, C]`: the mean of the logits over all views of a record (arXiv 1812.03982).

    Args:
        task: objectives.Classification.
        augment: `(key, batch, *, train, **options) -> batch`.
        clips: rows of a record, one after the other.
        crops: square crops along the longer side, of the whole shorter one; 1 = the centre crop of the config.
    """
    places = [dict(eval_place=place, eval_crop=1.0) for place in np.linspace(0, 1, crops)] if crops > 1 else [{}]

    def answer(params: dict, batch: dict) -> Array:
        views = [augment(jax.random.key(0), batch, train=False, **place) for place in places]
        each = jnp.stack([task.apply({'params': params}, view, method='logits')[0] for view in views])
        return each.mean(0).reshape(-1, clips, each.shape[-1]).mean(1)

    return answer


def answers(params: dict, batches: Iterable[dict], rows: int, task, augment, clips: int = 1, crops: int = 1) -> Answers:
    """The merged answers to this host's share of NumPy batches of `rows` rows, gathered from all hosts.

    Raises:
        InputError: no row has a label.
    """
    answer = jax.jit(merged(task, augment, clips, crops))
    logits, labels = [], []
    for batch in batches:
        batch = put(batch, rows, clips)
        found = answer(params, batch), batch['label'][::clips], (batch['valid'] & (batch['label'] >= 0))[::clips]
        out, label, counts = everywhere(found)
        logits.append(out[counts])
        labels.append(label[counts])
    if not sum(map(len, labels)):
        raise InputError('no labelled record in the validation data: give it labels, or remove this evaluation')
    return Answers(np.concatenate(logits), np.concatenate(labels))
