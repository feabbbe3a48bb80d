"""Masked autoregression of continuous tokens: hide, encode what is left, and let a small network denoise each hidden token by itself."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Mask, fold, per_row, plain, take
from mim_jax.noise import Schedule, coefficients, split, weight
from mim_jax.objectives.token_model import label_of, real


class MaskedAutoregression(nn.Module):
    """MAR (arXiv 2406.11838) with its diffusion loss; the variance of a step is not learned.

    Attributes:
        tokenizer: `(batch) -> Tokens`.
        untokenize: `(raw f32[B, N, R], shape) -> f32[shape]`, its inverse.
        mask: `(key, grid) -> Mask`.
        hide: `(tokens, mask, key) -> (raw, pos, valid, hidden)`.
        encoder: `(raw, pos, valid, hidden, condition, train) -> [B, E + K, D]`.
        predictor: `(z, pos_seen, pos_asked, width) -> f32[B, T, width]`, what the head is told of each asked token.
        head: `(x f32[M, R], t f32[M], told f32[M, head.width]) -> f32[M, R]`, the answer for noised tokens.
        condition: `(rows, level, label) -> f32[B, D]`, or None.
        schedule: `noise.Schedule`.
        times: `(key, rows, schedule) -> t f32[rows]`.
        answer: what the head answers, see `noise.coefficients`.
        weighting: what each time counts for, a kind of `noise.weight`.
        draws: times and noises for each token of a step.
        label_dropout: share of rows trained without their label (arXiv 2207.12598).
        field: the array of the batch.
    """

    tokenizer: Callable
    untokenize: Callable
    mask: Callable
    hide: Callable
    encoder: nn.Module
    predictor: nn.Module
    head: nn.Module
    condition: nn.Module | None
    schedule: Schedule
    times: Callable
    answer: str = 'noise'
    weighting: str = 'plain'
    draws: int = 4
    label_dropout: float = 0.1
    field: str = 'image'

    @property
    def num_classes(self) -> int:
        """That it is told; 0 = none."""
        return 0 if self.condition is None else self.condition.num_classes

    def encode(self, batch: dict, train: bool = False) -> Array:
        """Features of the whole input, nothing hidden: [B, E + N, D]."""
        tokens = self.tokenizer(batch)
        return self.encoder(tokens.raw, tokens.pos, tokens.valid, None, self._told(tokens, None), train=train)

    def tell(self, tokens, mask: Mask, label: Array | None, key: Array | None = None, train: bool = False):
        """What the head is told of every asked token f32[B, T, head.width], the features of visible ones [B, E + K, D], and which are real bool[B, K]."""
        raw, pos, valid, hidden = self.hide(tokens, mask, key)
        z = self.encoder(raw, pos, valid, hidden, self._told(tokens, label), train=train)
        asked = mask.hidden if tokens.valid is None else mask.hidden & tokens.valid
        told = self.predictor(z, pos, take(tokens.pos, mask.target), self.head.width, valid_seen=valid,
                              valid_asked=take(asked, mask.target))  # fmt: skip
        return told, z, jnp.ones(pos.shape[:2], bool) if valid is None else valid

    def _told(self, tokens, label: Array | None) -> Array | None:
        return None if self.condition is None else self.condition(len(tokens.raw), label=label)

    def denoise(self, x: Array, t: Array, told: Array) -> tuple[Array, Array]:
        """Expected (clean, noise) of noised tokens x f32[M, R] at times t f32[M], told f32[M, head.width]."""
        level = [z[:, None] for z in self.schedule.level(t)]
        return split(self.head(x, t, told), x, level, coefficients(self.answer, *level))

    def predict(self, batch: dict, key: Array, train: bool = False, mask: Mask | None = None) -> dict:
        """Everything a loss needs.

        Returns:
            dict(tokens, mask, z, seen bool[B, K], answers {'told': f32[B, T, head.width]}).
        """
        tokens = self.tokenizer(batch)
        mask = plain(self.mask(fold(key, 0), tokens.grid)) if mask is None else mask
        label = label_of(batch, len(tokens.raw), key, self.label_dropout if train else 0.0)
        told, z, seen = self.tell(tokens, mask, label, fold(key, 1), train)
        return dict(tokens=tokens, mask=mask, z=z, seen=seen, answers=dict(told=told))

    def noised(self, out: dict, key: Array) -> dict:
        """Tokens noised and what the head says of them, `draws` times the T asked ones of each row.

        Returns:
            dict(clean, noise, noised, answer: f32[B, S, R], t f32[B, S]), S = draws * T.
        """
        clean, told = (
            jnp.tile(x, (1, self.draws, 1))
            for x in (take(out['tokens'].raw, out['mask'].target), out['answers']['told'])
        )
        rows, count, _ = clean.shape
        keys = fold(key, 3) if key.ndim else jax.random.split(jax.random.fold_in(key, 3), rows)
        t = jax.vmap(lambda key: self.times(key, count, self.schedule))(keys)
        noise = per_row(fold(key, 4), jax.random.normal, clean.shape)
        alpha, sigma = (z[..., None] for z in self.schedule.level(t))
        noised = alpha * clean + sigma * noise
        flat = [x.reshape(rows * count, *x.shape[2:]) for x in (noised, t, told)]
        return dict(clean=clean, noise=noise, noised=noised, t=t, answer=self.head(*flat).reshape(clean.shape))

    def __call__(self, batch: dict, key: Array, train: bool = True) -> tuple[Array, dict]:
        """The mean over hidden tokens of the weighted squared error of the answer; aux as of the other objectives."""
        out = self.predict(batch, key, train)
        made, mask = self.noised(out, key), out['mask']
        counts = jnp.tile(mask.weight * take(real(out['tokens'], batch), mask.target), (1, self.draws))
        a, b = coefficients(self.answer, *self.schedule.level(made['t']))
        share = counts / jnp.maximum(counts.sum(), 1) * weight(self.weighting, self.schedule, made['t'], (a, b))
        goal = a[..., None] * made['clean'] + b[..., None] * made['noise']
        mean = jnp.einsum('bnr,bn->r', goal, share, precision='highest') / jnp.maximum(share.sum(), 1e-6)
        loss, baseline = ((jnp.square(guess - goal).mean(-1) * share).sum() for guess in (made['answer'], mean))
        pooled = out['z'][:, self.encoder.num_prefix :].astype(jnp.float32)
        pooled = jnp.einsum('bkd,bk->bd', pooled, out['seen'] / jnp.maximum(out['seen'].sum(1, keepdims=True), 1))
        return loss, jax.lax.stop_gradient(dict(baseline=baseline, features=pooled))
