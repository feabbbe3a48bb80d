"""What the encoder is given in place of hidden tokens: `(tokens, mask, key) -> (raw, pos, valid, hidden)`."""

from mim_jax.hiding.hide import bert, drop, mask_token

__all__ = ['bert', 'drop', 'mask_token']
