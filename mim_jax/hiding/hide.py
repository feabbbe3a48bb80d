"""How hidden tokens are kept from the encoder. All return `(raw, pos, valid, hidden)`."""

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.masks.mask import Mask, fold, per_row, take
from mim_jax.tokenizers.tokens import Tokens

Seen = tuple[Array, Array, Array | None, Array | None]


def drop(tokens: Tokens, mask: Mask, key: Array) -> Seen:
    """The encoder gets the visible tokens only (MAE, arXiv 2111.06377): raw[B, K, R], pos[B, K, P], valid, None.

    Where rows differ in their number of visible tokens, shorter ones are filled up with tokens that are not valid (MAR, arXiv 2406.11838).

    Raises:
        ValueError: rows of the mask differ, and it has no bound on the number.
    """
    del key
    seen, filled = mask.visible, mask.filled
    valid = None if tokens.valid is None else take(tokens.valid, seen)
    if filled is not None:
        valid = filled if valid is None else valid & filled
    return take(tokens.raw, seen), take(tokens.pos, seen), valid, None


def mask_token(tokens: Tokens, mask: Mask, key: Array) -> Seen:
    """The encoder gets every token and embeds a learned vector where hidden (SimMIM, arXiv 2111.09886).

    The raw values of hidden tokens are zeroed here, so that nothing of them can pass.
    """
    del key
    return tokens.raw * ~mask.hidden[..., None], tokens.pos, tokens.valid, mask.hidden


def bert(tokens: Tokens, mask: Mask, key: Array, *, vocab: int, random: float = 0.1, kept: float = 0.1) -> Seen:
    """As `mask_token` for ids below `vocab`, but a share `random` of the hidden becomes any token and a share `kept` stays (BERT, arXiv 1810.04805).

    Those are asked for like the others, so that an encoder which is later given text without masks has seen some.
    """
    shape = mask.hidden.shape
    u = per_row(fold(key, 0), jax.random.uniform, shape)
    other = per_row(fold(key, 1), lambda key, shape: jax.random.randint(key, shape, 0, vocab), shape)
    covered = mask.hidden & (u >= random + kept)
    raw = jnp.where((mask.hidden & (u < random))[..., None], other[..., None], tokens.raw)
    return raw * ~covered[..., None], tokens.pos, tokens.valid, covered
