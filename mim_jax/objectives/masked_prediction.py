"""Masked prediction: hide, encode what is left, and for each term predict a target of the asked tokens."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Mask, fold, take


class Term(NamedTuple):
    """One weighted loss of the sum; its predictor is the objective's submodule of the same name.

    Attributes:
        target: `(batch, tokens, teacher) -> f32[B, N, R]`.
        loss: `(prediction, goal, weight) -> scalar`.
        on: which tokens are asked: 'hidden', 'visible' or 'all'.
        weight: of this term in the sum.
    """

    target: Callable
    loss: Callable
    on: str
    weight: float


def asked(mask: Mask, on: str) -> tuple[Array, Array, Array | None]:
    """Positions i32[B, T] a term asks for, their weights f32[B, T], and which are no mere filling bool[B, T], None = all.

    Raises:
        ValueError: `on` is not one of hidden, visible, all.
    """
    if on == 'hidden':
        return mask.target, mask.weight, mask.asked
    if on == 'visible':
        filled = jnp.ones(mask.visible.shape, bool) if mask.filled is None else mask.filled
        return mask.visible, filled.astype(jnp.float32), mask.filled
    if on == 'all':
        every = jnp.broadcast_to(jnp.arange(mask.hidden.shape[1], dtype=jnp.int32), mask.hidden.shape)
        return every, jnp.ones(every.shape, jnp.float32), None
    raise ValueError(f"a term asks on 'hidden', 'visible' or 'all' tokens, not {on!r}")


def by_group(predictor: Callable, groups: int, z: Array, pos_seen: Array, pos_asked: Array, width: int, valid_seen: Array | None,
             valid_asked: Array | None) -> Array:  # fmt: skip
    """What the predictor answers to each of the equal `groups` of positions, asked by itself: f32[B, T, width]."""

    def again(x):
        return None if x is None else jnp.repeat(x, groups, 0)

    def apart(x):
        return None if x is None else x.reshape(-1, x.shape[1] // groups, *x.shape[2:])

    answer = predictor(again(z), again(pos_seen), apart(pos_asked), width, valid_seen=again(valid_seen),
                       valid_asked=apart(valid_asked))  # fmt: skip
    return answer.reshape(*pos_asked.shape[:2], width)


class MaskedPrediction(nn.Module):
    """MAE (arXiv 2111.06377), SimMIM (2111.09886), I-JEPA (2301.08243) and all that differ from them in a choice per slot.

    Attributes:
        tokenizer: `(batch) -> Tokens`.
        mask: `(key, grid) -> Mask`.
        hide: `(tokens, mask, key) -> (raw, pos, valid, hidden)`.
        encoder: `(raw, pos, valid, hidden, train) -> [B, E + K, D]`, E = `encoder.num_prefix` leading class and register tokens.
        predictor: a predictor for each term, `(z, pos_seen, pos_asked, width) -> f32[B, T, width]`.
        terms: what is predicted, by name.
    """

    tokenizer: Callable
    mask: Callable
    hide: Callable
    encoder: nn.Module
    predictor: dict[str, nn.Module]
    terms: dict[str, Term]
    taught = True  # takes a teacher

    def encode(self, batch: dict, train: bool = False) -> Array:
        """Features of the whole input, nothing hidden: [B, E + N, D]."""
        tokens = self.tokenizer(batch)
        return self.encoder(tokens.raw, tokens.pos, tokens.valid, None, train=train)

    def predict(self, batch: dict, key: Array, train: bool = False, mask: Mask | None = None, teacher=None) -> dict:
        """Everything a picture or a loss needs.

        Args:
            batch: arrays by name; an optional 'valid' bool[B] gives rows of no sample weight 0.
            key: one key, or a key per row.
            train: draw drop path.
            mask: use this one instead of drawing it.
            teacher: `(batch) -> [B, E + N, D]`, passed on to the targets; None = the encoder itself.

        Returns:
            dict(tokens, mask, z, valid, terms), where valid is that of the tokens of z, and terms[name] = dict(prediction f32[B, T, R], goal f32[B, T, R], asked i32[B, T],
                real bool[B, T] or None, weight f32[B, T]).
        """
        tokens = self.tokenizer(batch)
        mask = self.mask(fold(key, 0), tokens.grid) if mask is None else mask
        raw, pos, valid, hidden = self.hide(tokens, mask, fold(key, 1))
        teacher = self.encode if teacher is None else teacher
        z = self.encoder(raw, pos, valid, hidden, train=train)  # [B, E + K, D]
        answers = {}
        for name, term in self.terms.items():
            index, weight, real = asked(mask, term.on)
            goal = take(jax.lax.stop_gradient(term.target(batch, tokens, teacher)), index)  # f32[B, T, R]
            if tokens.valid is not None:
                exists = take(tokens.valid, index)
                real = exists if real is None else real & exists
            prediction = by_group(self.predictor[name], mask.groups if term.on == 'hidden' else 1, z, pos,
                                  take(tokens.pos, index), goal.shape[-1], valid, real)  # fmt: skip
            weight = weight if real is None else weight * real
            weight = weight * batch['valid'][:, None] if 'valid' in batch else weight
            answers[name] = dict(prediction=prediction, goal=goal, asked=index, real=real, weight=weight)
        return dict(tokens=tokens, mask=mask, z=z, valid=valid, terms=answers)

    def __call__(
        self, batch: dict, key: Array, train: bool = True, mask: Mask | None = None, teacher=None
    ) -> tuple[Array, dict]:
        """The weighted sum of the terms, and what the log shows of it.

        Returns:
            loss: f32 scalar.
            aux: 'baseline' the same sum for a predictor that answers the mean goal, 'features' f32[B, D] mean-pooled
                patch features, and each term's own loss as 'loss_NAME' where there are several.
        """
        out = self.predict(batch, key, train, mask, teacher)
        loss = baseline = jnp.zeros((), jnp.float32)
        aux = {}
        for name, term in self.terms.items():
            a = out['terms'][name]
            own = term.loss(a['prediction'], a['goal'], a['weight'])
            loss += term.weight * own
            share = a['weight'] / jnp.maximum(a['weight'].sum(), 1e-6)  # f32[B, T]
            mean = jnp.einsum('btr,bt->r', a['goal'], share, precision='highest')
            baseline += term.weight * term.loss(jnp.broadcast_to(mean, a['goal'].shape), a['goal'], a['weight'])
            if len(self.terms) > 1:
                aux[f'loss_{name}'] = own
        z = out['z'][:, self.encoder.num_prefix :].astype(jnp.float32)
        seen = jnp.ones(z.shape[:2]) if out['valid'] is None else out['valid'].astype(jnp.float32)
        pooled = (z * seen[..., None]).sum(1) / jnp.maximum(seen.sum(1, keepdims=True), 1)
        return loss, aux | dict(baseline=jax.lax.stop_gradient(baseline), features=jax.lax.stop_gradient(pooled))
