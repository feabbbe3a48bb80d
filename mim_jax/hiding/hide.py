"""How hidden tokens are kept from the encoder. All return `(raw, pos, valid, hidden)`."""

from jax import Array

from mim_jax.masks.mask import Mask, take
from mim_jax.tokenizers.tokens import Tokens

Seen = tuple[Array, Array, Array | None, Array | None]


def drop(tokens: Tokens, mask: Mask, key: Array) -> Seen:
    """The encoder gets the visible tokens only (MAE, arXiv 2111.06377): raw[B, K, R], pos[B, K, P], valid, None.

    Raises:
        ValueError: rows of the mask differ in their number of visible tokens.
    """
    del key
    seen = mask.visible
    valid = None if tokens.valid is None else take(tokens.valid, seen)
    return take(tokens.raw, seen), take(tokens.pos, seen), valid, None


def mask_token(tokens: Tokens, mask: Mask, key: Array) -> Seen:
    """The encoder gets every token and embeds a learned vector where hidden (SimMIM, arXiv 2111.09886).

    The raw values of hidden tokens are zeroed here, so that nothing of them can pass.
    """
    del key
    return tokens.raw * ~mask.hidden[..., None], tokens.pos, tokens.valid, mask.hidden
