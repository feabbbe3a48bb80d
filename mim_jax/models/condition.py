"""What a network is told besides its tokens, as one vector."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from mim_jax.models.positions import sincos

FREQUENCIES = 256


class Condition(nn.Module):
    """condition(rows, level f32[B] | None, label i32[B] | None) -> f32[B, width], the sum of what it is made for (DiT, arXiv 2212.09748).

    `level` in [0, 1]: time, or a level of noise; `num_classes`: label -1 stands for no class, an embedding of its own. Both begin with the scale of
    1, not DiT's 0.02: gates that are 0 at first learn as fast as what they are told is large.
    """

    width: int
    level: bool = False
    num_classes: int = 0

    @nn.compact
    def __call__(self, rows: int, level: Array | None = None, label: Array | None = None) -> Array:
        out = jnp.zeros((rows, self.width))
        if self.level:
            level = jnp.zeros(rows) if level is None else level
            waves = sincos(1000 * level[:, None], FREQUENCIES)
            hidden = nn.silu(nn.Dense(self.width, name='level1')(waves))
            out += nn.Dense(self.width, name='level2')(hidden)
        if self.num_classes:
            label = jnp.full(rows, -1) if label is None else label
            table = nn.Embed(self.num_classes + 1, self.width, embedding_init=nn.initializers.normal(1.0), name='label')
            out += table(jnp.where(label < 0, self.num_classes, label))
        return out
