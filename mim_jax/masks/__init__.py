"""Which tokens are hidden and which are asked for: pure functions `(key, grid, **options) -> Mask`."""

from mim_jax.masks.absorbing import absorbing, schedule
from mim_jax.masks.grid import block, grid, multiblock, nothing, random, varying
from mim_jax.masks.mask import Mask, asking, take
from mim_jax.masks.video import running_cell, tube

__all__ = [
    'Mask',
    'absorbing',
    'asking',
    'block',
    'grid',
    'multiblock',
    'nothing',
    'random',
    'running_cell',
    'schedule',
    'take',
    'tube',
    'varying',
]
