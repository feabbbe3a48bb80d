"""Weights of Hugging Face transformers' `ViTMAEForPreTraining` (arXiv 2111.06377) as parameters of ours."""

import re
from collections.abc import Mapping

import numpy as np

from mim_jax.errors import InputError

RELEASED = (  # names in checkpoints older than transformers 5 -> names today
    (r'\.encoder\.layer\.', '.layers.'),
    (r'\.attention\.attention\.(query|key|value)\.', lambda m: f'.attention.{m[1][0]}_proj.'),
    (r'\.attention\.output\.dense\.', '.attention.o_proj.'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'(\d)\.output\.dense\.', r'\1.mlp.fc2.'),
)


def rename(name: str) -> str:
    """Today's name of a tensor of a checkpoint of any age."""
    for old, new in RELEASED:
        name = re.sub(old, new, name)
    return name


class _Reader:
    def __init__(self, state):
        self.state = {rename(name): np.asarray(value) for name, value in state.items()}

    def __call__(self, name):
        if name not in self.state:
            raise InputError(f'the state dict has no tensor {name!r}: is it that of a ViTMAEForPreTraining?')
        return self.state[name]

    def norm(self, name):
        return {'scale': self(f'{name}.weight'), 'bias': self(f'{name}.bias')}

    def dense(self, name):
        return {'kernel': self(f'{name}.weight').T, 'bias': self(f'{name}.bias')}

    def stem(self, name):
        """A convolution [D, C, ph, pw] as the product with raw patches, whose order is (ph, pw, C)."""
        weight = self(f'{name}.weight').transpose(2, 3, 1, 0)
        return {'kernel': weight.reshape(-1, weight.shape[-1]), 'bias': self(f'{name}.bias')}

    def block(self, name):
        q, k, v = (self.dense(f'{name}.attention.{p}_proj') for p in 'qkv')
        return {
            'norm1': self.norm(f'{name}.layernorm_before'),
            'attention': {
                # softmax does not see a bias on the keys: ours has none
                'qkv': {
                    'kernel': np.stack([q['kernel'], k['kernel'], v['kernel']]),
                    'bias': np.stack([q['bias'], v['bias']]),
                },
                'out': self.dense(f'{name}.attention.o_proj'),
            },
            'norm2': self.norm(f'{name}.layernorm_after'),
            'mlp': {fc: self.dense(f'{name}.mlp.{fc}') for fc in ('fc1', 'fc2')},
        }

    def blocks(self, name):
        depth = len({m[1] for m in (re.match(rf'{name}\.(\d+)\.', key) for key in self.state) if m})
        return {f'block_{i}': self.block(f'{name}.{i}') for i in range(depth)}


def params(state: Mapping, term: str = 'pixels') -> dict:
    """Parameters of a `MaskedPrediction` with a ViT encoder and a `SelfAttention` predictor.

    Args:
        state: NumPy arrays by the names of `ViTMAEForPreTraining.state_dict()`, of any release. Its position
            embeddings are not read: they are the fixed sine-cosine ones, which ours computes.
        term: name of the pixel term.

    Returns:
        dict(encoder=..., predictor_TERM=...). Transformers' norms use eps=1e-12 where ours default to MAE's 1e-6:
        build the encoder and the predictor with `eps` of the original's config.

    Raises:
        InputError: a tensor is missing.
    """
    read = _Reader(state)
    encoder = {
        'class_token': read('vit.embeddings.cls_token')[0],
        'embed': read.stem('vit.embeddings.patch_embeddings.projection'),
        'blocks': read.blocks('vit.layers'),
        'norm': read.norm('vit.layernorm'),
    }
    predictor = {
        'mask_token': read('decoder.mask_token')[0, 0],
        'embed': read.dense('decoder.decoder_embed'),
        'blocks': read.blocks('decoder.decoder_layers'),
        'norm': read.norm('decoder.decoder_norm'),
        'head': read.dense('decoder.decoder_pred'),
    }
    return {'encoder': encoder, f'predictor_{term}': predictor}
