"""How a batch becomes tokens: functions `(batch, **options) -> Tokens`, without parameters."""

from mim_jax.tokenizers.ids import ids
from mim_jax.tokenizers.patches import patch_grid, patches, patchify, unpatchify
from mim_jax.tokenizers.tokens import Tokens, field

__all__ = ['Tokens', 'field', 'ids', 'patch_grid', 'patches', 'patchify', 'unpatchify']
