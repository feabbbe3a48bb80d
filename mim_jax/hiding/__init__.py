"""What the encoder is given in place of hidden tokens: `(tokens, mask, key) -> (raw, pos, valid, hidden)`."""

from mim_jax.hiding.hide import drop, mask_token

__all__ = ['drop', 'mask_token']
