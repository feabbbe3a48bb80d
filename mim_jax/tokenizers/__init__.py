"""How a batch becomes tokens: functions `(batch, **options) -> Tokens`, without parameters."""

from mim_jax.tokenizers.patches import patch_grid, patches, patchify, unpatchify
from mim_jax.tokenizers.tokens import Tokens

__all__ = ['Tokens', 'patch_grid', 'patches', 'patchify', 'unpatchify']
