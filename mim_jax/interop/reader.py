"""Parts of Hugging Face transformers' vision models as parameters of ours."""

import re
from collections.abc import Mapping

import numpy as np

from mim_jax.errors import InputError

RELEASED = (  # names in released checkpoints and in VideoMAE -> names ViTMAE has since transformers 5
    (r'\.encoder\.layer\.', '.layers.'),
    (r'\.attention\.attention\.(query|key|value)\.', lambda m: f'.attention.{m[1][0]}_proj.'),
    (r'\.attention\.attention\.([qv])_bias$', r'.attention.\1_proj.bias'),
    (r'\.attention\.output\.dense\.', '.attention.o_proj.'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'(\d)\.output\.dense\.', r'\1.mlp.fc2.'),
)


def rename(name: str) -> str:
    """The one name of a tensor of a checkpoint of any age."""
    for old, new in RELEASED:
        name = re.sub(old, new, name)
    return name


class Reader:
    """Reads NumPy arrays by name; raises InputError, which names `source`, the class they should be of."""

    def __init__(self, state: Mapping, source: str):
        self.state = {rename(name): np.asarray(value) for name, value in state.items()}
        self.source = source

    def __call__(self, name):
        if name not in self.state:
            raise InputError(f'the state dict has no tensor {name!r}: is it that of a {self.source}?')
        return self.state[name]

    def norm(self, name):
        return {'scale': self(f'{name}.weight'), 'bias': self(f'{name}.bias')}

    def dense(self, name):
        return {'kernel': self(f'{name}.weight').T, 'bias': self(f'{name}.bias')}

    def stem(self, name):
        """A convolution [D, C, *patch] as the product with raw patches, whose order is (*patch, C)."""
        weight = np.moveaxis(self(f'{name}.weight'), (0, 1), (-1, -2))
        return {'kernel': weight.reshape(-1, weight.shape[-1]), 'bias': self(f'{name}.bias')}

    def block(self, name):
        projection = f'{name}.attention.{{}}_proj.{{}}'.format
        return {
            'norm1': self.norm(f'{name}.layernorm_before'),
            'attention': {
                # softmax does not see a bias on the keys: ours has none
                'qkv': {
                    'kernel': np.stack([self(projection(p, 'weight')).T for p in 'qkv']),
                    'bias': np.stack([self(projection(p, 'bias')) for p in 'qv']),
                },
                'out': self.dense(f'{name}.attention.o_proj'),
            },
            'norm2': self.norm(f'{name}.layernorm_after'),
            'mlp': {fc: self.dense(f'{name}.mlp.{fc}') for fc in ('fc1', 'fc2')},
        }

    def blocks(self, name):
        depth = len({m[1] for m in (re.match(rf'{name}\.(\d+)\.', key) for key in self.state) if m})
        return {f'block_{i}': self.block(f'{name}.{i}') for i in range(depth)}
