"""Absorbing-state diffusion of tokens: hide at a random level, and answer what is hidden."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Mask, fold, plain
from mim_jax.objectives.token_model import TokenModel, monitor, real


class TokenDiffusion(TokenModel):
    """MDLM (arXiv 2406.07524), MD4 (2406.04329), MaskGIT (2202.04200) and BERT (1810.04805), which differ in mask and weights.

    Attributes (besides those of TokenModel):
        mask: `(key, grid) -> Mask` that asks for every token.
        hide: `(tokens, mask, key) -> (raw, pos, valid, hidden)`.
        weighting: 'bound': the loss is the bound on the negative log-likelihood in nats a token, by the weights of the mask;
            'mean': the mean cross-entropy of hidden tokens.
        smoothing: of the labels, in training only.
    """

    mask: Callable = None
    hide: Callable = None
    weighting: str = 'bound'
    smoothing: float = 0.0

    def answer(self, ids: Array, hidden: Array, level: Array | None = None, label: Array | None = None) -> Array:
        """logits f32[B, N, V] for ids i32[B, N] of which hidden bool[B, N] do not count."""
        tokens = self.tokenizer(dict(ids=ids))
        return self.network(tokens.raw * ~hidden[..., None], tokens.pos, None, hidden, level, label)[0]

    def predict(self, batch: dict, key: Array, train: bool = False, mask: Mask | None = None) -> dict:
        """dict(tokens, mask, logits f32[B, N, V], z [B, N, D], real f32[B, N])."""
        tokens = self.tokenizer(batch)
        mask = plain(self.mask(fold(key, 0), tokens.grid)) if mask is None else mask
        raw, pos, _, hidden = self.hide(tokens, mask, fold(key, 1))
        logits, z = self.network(raw, pos, tokens.sees, hidden, mask.level, self.label(batch, key, train), train)
        return dict(tokens=tokens, mask=mask, logits=logits, z=z, real=real(tokens, batch))

    def nats(self, batch: dict, key: Array, mask: Mask | None = None) -> tuple[Array, Array]:
        """An unbiased estimate of the negative evidence lower bound of each row in nats, f32[B], and its number of tokens f32[B].

        All that the mask hides is hidden, whatever `hide` shows in training: what is seen costs nothing, and a bound has to pay for it.
        """
        tokens = self.tokenizer(batch)
        mask = plain(self.mask(fold(key, 0), tokens.grid)) if mask is None else mask
        raw, label = tokens.raw * ~mask.hidden[..., None], self.label(batch, key, False)
        logits, _ = self.network(raw, tokens.pos, tokens.sees, mask.hidden, mask.level, label)
        counts = real(tokens, batch)
        return (mask.weight * self.nll(logits, tokens.raw[..., 0]) * counts).sum(1), counts.sum(1)

    def __call__(self, batch: dict, key: Array, train: bool = True, mask: Mask | None = None) -> tuple[Array, dict]:
        """The loss in nats a token, and aux: 'baseline', 'features', see `monitor`."""
        out = self.predict(batch, key, train, mask)
        hidden = out['mask'].hidden * out['real']
        if self.weighting == 'bound':
            weight = out['mask'].weight * out['real'] / jnp.maximum(out['real'].sum(), 1)
        else:
            weight = hidden / jnp.maximum(hidden.sum(), 1)
        ids, vocab = out['tokens'].raw[..., 0], out['logits'].shape[-1]
        nll = self.nll(out['logits'], ids, self.smoothing)
        return (weight * nll).sum(), monitor(ids, vocab, weight, out['z'])
