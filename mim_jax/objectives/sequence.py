"""Left to right: every token from those before it."""

import jax.numpy as jnp
from jax import Array

from mim_jax.objectives.token_model import TokenModel, monitor, real


class Sequence(TokenModel):
    """An autoregressive model with the Transformer of `TokenDiffusion`; the mask token stands where a document begins."""

    exact = True

    def left_to_right(self, tokens, label: Array | None, train: bool = False) -> tuple[Array, Array]:
        """logits f32[B, N, V] of each token given those before it in its document, and features [B, N, D]."""
        b, n = tokens.raw.shape[:2]
        raw = jnp.pad(tokens.raw[:, :-1], [(0, 0), (1, 0), (0, 0)])
        sees = jnp.broadcast_to(jnp.tril(jnp.ones((n, n), bool)), (b, n, n))
        sees = sees if tokens.segment is None else sees & tokens.sees
        return self.network(raw * ~tokens.first[..., None], tokens.pos, sees, tokens.first, None, label, train)

    def answer(self, ids: Array, hidden: Array, level: Array | None = None, label: Array | None = None) -> Array:
        """logits f32[B, N, V]; what is hidden must come after what is not, as when drawn left to right."""
        return self.left_to_right(self.tokenizer(dict(ids=ids)), label)[0]

    def nats(self, batch: dict, key: Array, mask=None) -> tuple[Array, Array]:
        """The negative log-likelihood of each row in nats, f32[B], and its number of tokens f32[B]."""
        tokens = self.tokenizer(batch)
        logits, _ = self.left_to_right(tokens, batch.get('label'))
        counts = real(tokens, batch)
        return (self.nll(logits, tokens.raw[..., 0]) * counts).sum(1), counts.sum(1)

    def __call__(self, batch: dict, key: Array, train: bool = True) -> tuple[Array, dict]:
        """The loss in nats a token, and aux: 'baseline', 'features', see `monitor`."""
        tokens = self.tokenizer(batch)
        logits, z = self.left_to_right(tokens, self.label(batch, key, train), train)
        counts = real(tokens, batch)
        weight = counts / jnp.maximum(counts.sum(), 1)
        ids = tokens.raw[..., 0]
        return (weight * self.nll(logits, ids)).sum(), monitor(ids, logits.shape[-1], weight, z)
