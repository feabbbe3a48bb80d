"""Masked diffusion of continuous tokens: add noise, hide, encode what is left, and answer what was noise and what is hidden."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Mask, fold, per_row, positions, take
from mim_jax.noise import Schedule, coefficients, split, weight
from mim_jax.objectives.token_model import label_of


class Answer(NamedTuple):
    """One weighted loss of the sum.

    Attributes:
        of: the answer of the network that is compared, one of `Denoise.answers`.
        on: which tokens count: 'hidden', 'visible' or 'all'.
        weight: in the sum.
        weighting: what each level counts for, a kind of `noise.weight`.
        noised: None, or `raw f32[B, N, R] -> f32[B, N, R]`: then what the answer says of the clean token is compared with this of
            the noised one (MaskDiT, arXiv 2306.09305).
    """

    of: str
    on: str
    weight: float
    weighting: str
    noised: Callable | None = None


class Denoise(nn.Module):
    """DiT (arXiv 2212.09748), MaskDiT (2306.09305) and UMD (2406.17688), which differ in masks and in what is asked where.

    Attributes:
        tokenizer: `(batch) -> Tokens`.
        untokenize: `(raw f32[B, N, R], shape) -> f32[shape]`, its inverse.
        schedule: `noise.Schedule`.
        times: `(key, rows, schedule) -> t f32[rows]`, of rows with noise.
        mask: `(key, grid) -> Mask`, of rows with noise.
        mixer: None, or `(raw, pos, valid, hidden, condition, train) -> [B, N, D]`, which looks at every token before any is dropped
            (MicroDiT, arXiv 2407.15811).
        encoder: `(raw, pos, valid, hidden, condition, train) -> [B, E + K, D]`, of visible tokens.
        predictor: `(z, pos_seen, pos_asked, width, condition=) -> f32[B, K + T, width]`, answers of what is seen and of what is asked.
        condition: `(rows, level, label) -> f32[B, D]`.
        answers: what the network answers of every token, parametrisations of `noise.coefficients`; samplers read the last one.
        terms: losses of rows with noise, by name.
        clean_every: each so-manieth row comes without noise at time 0, and is told no label (UMD); 0 = none.
        clean_mask: of those.
        clean_terms: their losses.
        label_dropout: share of rows trained without their label (arXiv 2207.12598).
        spread: standard deviation of the data; the network reads x over that of x. 0 = x itself.
        field: the array of the batch.
    """

    tokenizer: Callable
    untokenize: Callable
    schedule: Schedule
    times: Callable
    mask: Callable
    encoder: nn.Module
    predictor: nn.Module
    condition: nn.Module
    answers: Sequence[str]
    terms: dict[str, Answer]
    clean_every: int = 0
    clean_mask: Callable | None = None
    clean_terms: dict[str, Answer] | None = None
    mixer: nn.Module | None = None
    label_dropout: float = 0.1
    spread: float = 0.0
    field: str = 'image'

    @property
    def num_classes(self) -> int:
        """That it is told; 0 = none."""
        return self.condition.num_classes

    def network(self, tokens, t: Array, label: Array | None, mask: Mask | None = None, train: bool = False):
        """Of noised Tokens the answers {name: f32[B, N, R]}, of visible tokens first, and the features of those [B, E + K, D]."""
        alpha, sigma = (x[:, None, None] for x in self.schedule.level(t))
        scale = 1.0 if not self.spread else 1 / jnp.sqrt(sigma**2 + (alpha * self.spread) ** 2)
        seen, asked = order(tokens, mask)
        valid, real = (None if tokens.valid is None else take(tokens.valid, index) for index in (seen, asked))
        condition, raw = self.condition(len(t), t, label), tokens.raw * scale
        if self.mixer is not None:
            raw = self.mixer(raw, tokens.pos, tokens.valid, None, condition, train=train)[:, self.mixer.num_prefix :]
        raw, pos = take(raw, seen), take(tokens.pos, seen)
        z = self.encoder(raw, pos, valid, None, condition, train=train)
        width = tokens.raw.shape[-1] * len(self.answers)
        out = self.predictor(
            z, pos, take(tokens.pos, asked), width, valid_seen=valid, valid_asked=real, condition=condition
        )
        return dict(zip(self.answers, jnp.split(out, len(self.answers), -1), strict=True)), z

    def mixture(self, answer: str, level: Sequence[Array]) -> tuple[Array, Array]:
        """See `noise.coefficients`."""
        return coefficients(answer, *level, spread=self.spread or 1.0)

    def encode(self, batch: dict, train: bool = False, t: Array | None = None, key: Array | None = None) -> Array:
        """Features of the whole input, nothing hidden: [B, E + N, D]; without noise, or with that of time t f32[] and `key`."""
        tokens = self.tokenizer(batch)
        if t is None:
            return self.network(tokens, jnp.zeros(len(tokens.raw)), None, train=train)[1]
        alpha, sigma = self.schedule.level(t)
        raw = alpha * tokens.raw + sigma * jax.random.normal(key, tokens.raw.shape)
        return self.network(tokens.replace(raw=raw), jnp.full(len(raw), t), None, train=train)[1]

    def denoise(self, x: Array, t: Array, label: Array | None = None) -> tuple[Array, Array]:
        """Expected (clean, noise) of noised arrays x f32[B, *spatial, C] at times t f32[B]."""
        tokens, kind = self.tokenizer({self.field: x}), self.answers[-1]
        level = [z[:, None, None] for z in self.schedule.level(t)]
        answer = self.network(tokens, t, label)[0][kind]
        found = split(answer, tokens.raw, level, self.mixture(kind, level))
        return tuple(self.untokenize(z, x.shape) for z in found)

    def predict(
        self,
        batch: dict,
        key: Array,
        train: bool = False,
        clean: bool = False,
        t: Array | None = None,
        mask: Mask | None = None,
    ) -> dict:
        """Everything a loss or a picture needs, of rows with noise or, with `clean`, of rows without.

        Returns:
            dict(tokens, noised f32[B, N, R], noise f32[B, N, R], t f32[B], mask, answers {name: f32[B, N, R]} of visible tokens first, z).
        """
        tokens = self.tokenizer(batch)
        rows = len(tokens.raw)
        if t is None:
            t = jnp.zeros(rows) if clean else self.times(fold(key, 0), rows, self.schedule)
        added = per_row(fold(key, 1), jax.random.normal, tokens.raw.shape)
        alpha, sigma = (jnp.ones(rows), jnp.zeros(rows)) if clean else self.schedule.level(t)
        noised = alpha[:, None, None] * tokens.raw + sigma[:, None, None] * added
        if mask is None:
            mask = (self.clean_mask if clean else self.mask)(fold(key, 3), tokens.grid)
        label = None if clean else label_of(batch, rows, key, self.label_dropout if train else 0.0)
        answers, z = self.network(tokens.replace(raw=noised), t, label, mask, train)
        return dict(tokens=tokens, noised=noised, noise=added, t=t, mask=mask, answers=answers, z=z)

    def losses(self, batch: dict, out: dict, terms: dict[str, Answer]) -> dict[str, tuple[Array, Array]]:
        """Of each term its loss, and that of an answer that is the mean goal.

        Raises:
            ValueError: a term on tokens that the predictor does not answer.
        """
        level, found = [z[:, None, None] for z in self.schedule.level(out['t'])], {}
        valid = batch['valid'] if 'valid' in batch else jnp.ones(len(out['t']), bool)
        seen, asked = order(out['tokens'], out['mask'])
        answered = next(iter(out['answers'].values())).shape[1]
        index, tokens = jnp.concatenate([seen, asked], 1)[:, :answered], out['tokens']
        clean, noised, noise = (take(x, index) for x in (tokens.raw, out['noised'], out['noise']))
        real = valid[:, None] if tokens.valid is None else valid[:, None] & take(tokens.valid, index)
        visible = jnp.arange(index.shape[1]) < seen.shape[1]
        on = dict(visible=visible, hidden=~visible, all=jnp.ones_like(visible))
        for name, term in terms.items():
            if term.on != 'visible' and answered < tokens.raw.shape[1]:
                raise ValueError(
                    f"config.terms.{name}.on={term.on}: this predictor answers visible tokens only, on='visible'"
                )
            answer, ab = out['answers'][term.of], self.mixture(term.of, level)
            goal = ab[0] * clean + ab[1] * noise
            if term.noised is not None:
                answer, goal = split(answer, noised, level, ab)[0], term.noised(noised)
            counts = on[term.on] & real
            share = counts / jnp.maximum(counts.sum(), 1)
            share *= weight(term.weighting, self.schedule, out['t'], [z[:, 0, 0] for z in ab])[:, None]
            mean = jnp.einsum('bnr,bn->r', goal, share, precision='highest') / jnp.maximum(share.sum(), 1e-6)
            found[name] = tuple((jnp.square(guess - goal).mean(-1) * share).sum() for guess in (answer, mean))
        return found

    def __call__(self, batch: dict, key: Array, train: bool = True) -> tuple[Array, dict]:
        """The weighted sum of the terms, and aux: 'baseline' that of the mean goals, 'features' f32[B, D], each 'loss_NAME' of several.

        Raises:
            ValueError: the rows are no multiple of `clean_every`.
        """
        parts = [(batch, key, False, self.terms, 1.0)]
        if every := self.clean_every:
            whole, share = (
                batch | dict(key=key if key.ndim else jax.random.split(key, len(batch[self.field]))),
                1 / every,
            )
            if len(batch[self.field]) % every:
                raise ValueError(f'{len(batch[self.field])} rows are no multiple of objective.clean_every={every}')
            cut = [jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:]), whole)] * 2
            cut = (
                jax.tree.map(lambda x: x[:, 0], cut[0]),
                jax.tree.map(lambda x: x[:, 1:].reshape(-1, *x.shape[2:]), cut[1]),
            )
            parts = [(c, c.pop('key'), clean, terms, part) for c, clean, terms, part in (
                (cut[0], True, self.clean_terms, share), (cut[1], False, self.terms, 1 - share))]  # fmt: skip
        loss = baseline = jnp.zeros(())
        aux = {}
        for rows, keys, clean, terms, share in parts:
            out = self.predict(rows, keys, train, clean)
            for name, (own, mean) in self.losses(rows, out, terms).items():
                loss, baseline = loss + share * terms[name].weight * own, baseline + share * terms[name].weight * mean
                aux[f'loss_{"clean_" * clean}{name}'] = own
        pooled = out['z'][:, self.encoder.num_prefix :].astype(jnp.float32).mean(1)
        return loss, jax.lax.stop_gradient((aux if len(aux) > 1 else {}) | dict(baseline=baseline, features=pooled))


def order(tokens, mask: Mask | None) -> tuple[Array, Array]:
    """Positions i32[B, K] of visible and i32[B, T] of hidden tokens; without a mask all are visible.

    Raises:
        ValueError: rows of the mask differ.
    """
    if mask is None:
        every = jnp.broadcast_to(jnp.arange(tokens.raw.shape[1], dtype=jnp.int32), tokens.raw.shape[:2])
        return every, every[:, :0]
    if mask.num_visible is None:
        raise ValueError(
            'rows of this mask differ in their number of visible tokens: take one that hides as many in each'
        )
    return mask.visible, positions(mask.hidden, mask.hidden.shape[1] - mask.num_visible)
