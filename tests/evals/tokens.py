"""A small random model of tokens and ten rows of validation text for it."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mim_jax import hiding
from mim_jax.augment import tokens
from mim_jax.evals.data import evenly
from mim_jax.losses import nll
from mim_jax.masks import absorbing
from mim_jax.models import Transformer
from mim_jax.models.condition import Condition
from mim_jax.objectives import Sequence, TokenDiffusion
from mim_jax.tokenizers import ids

VOCAB = 7


@dataclass
class Texts:
    """LabelledData of random ids: two documents and some padding a row, two bytes a token."""

    LENGTH = 12
    num_classes: int = 3
    num_train: int = 10
    class_names: tuple = ()
    text: bool = True

    def val(self, batch_size, reader=None, count=0):
        rng = np.random.default_rng(0)
        x = rng.integers(0, VOCAB, (10, self.LENGTH)).astype(np.int32)
        segment = np.tile(np.int32([1] * 5 + [2] * 5 + [0] * 2), (10, 1))
        rows = dict(ids=x, label=np.arange(10, dtype=np.int32) % 3, valid=np.ones(10, bool))
        if self.text:
            rows |= dict(segment=segment, bytes=2 * (segment > 0).sum(1).astype(np.int32))
        rows = {name: value[evenly(10, count or 10)] for name, value in rows.items()}
        for i in range(0, count or 10, batch_size):
            yield {name: value[i : i + batch_size] for name, value in rows.items()}

    def train(self, batch_size, seed=0, shuffle=True, steps=None, reader=None):
        for _ in range(steps):
            yield next(iter(self.val(batch_size)))

    augment = staticmethod(tokens)
    say = staticmethod(print)

    def decode(self, rows):
        return [''.join(map(str, row)) for row in rows]


def model(objective=TokenDiffusion, classes=0, data=None):
    """(objective, params, data)."""
    encoder = Transformer(width=16, depth=1, heads=2, vocab=VOCAB)
    parts = {} if objective is Sequence else dict(mask=absorbing, hide=hiding.mask_token)
    condition = Condition(16, False, classes) if classes else None
    made = objective(ids, encoder, nn.Dense(VOCAB), condition, nll, **parts)
    batch = {name: jnp.asarray(x) for name, x in next(Texts().val(2)).items()}
    params = made.init(jax.random.key(0), batch, jax.random.key(1), train=False)['params']
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    return made, params, data or Texts()
