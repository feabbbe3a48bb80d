"""Weights of Hugging Face transformers' VideoMAE (arXiv 2203.12602) as parameters of ours.

Either takes NumPy arrays by the names of the `state_dict()`, or by those of a released checkpoint, which has
`attention.attention.q_bias` for `attention.attention.query.bias`, and so for v. The fixed sinusoid positions are in
neither: ours computes them. The encoder is ViT(class_token=False, positions='sinusoid', grid=(T, H, W)).

Norms: VideoMAE's own have eps=1e-6, as ours by default. Transformers builds those of the blocks, and the last one of
the encoder, with `layer_norm_eps` of its config, and `decoder.norm` and `fc_norm` with PyTorch's 1e-5.
"""

from collections.abc import Mapping

import numpy as np

from mim_jax.interop.reader import Reader


def params(state: Mapping, term: str = 'pixels') -> dict:
    """Parameters of a `MaskedPrediction` from a `VideoMAEForPreTraining` built with use_mean_pooling=False.

    The predictor is a SelfAttention(positions='sinusoid', grid=(T, H, W)). The original has no bias between encoder
    and decoder: ours gets zeros.

    Args:
        state: arrays by name.
        term: name of the pixel term.

    Returns:
        dict(encoder=..., predictor_TERM=...).

    Raises:
        InputError: a tensor is missing.
    """
    read = Reader(state, 'VideoMAEForPreTraining')
    between = read('encoder_to_decoder.weight').T
    predictor = {
        'mask_token': read('mask_token')[0, 0],
        'embed': {'kernel': between, 'bias': np.zeros(between.shape[1], between.dtype)},
        'blocks': read.blocks('decoder.decoder_layers'),
        'norm': read.norm('decoder.norm'),
        'head': read.dense('decoder.head'),
    }
    return {'encoder': _encoder(read) | {'norm': read.norm('videomae.layernorm')}, f'predictor_{term}': predictor}


def classifier(state: Mapping) -> dict:
    """Parameters of a `Classifier(pool='mean')` from a `VideoMAEForVideoClassification` with use_mean_pooling=True.

    Returns:
        dict(encoder=..., norm=..., head=...).

    Raises:
        InputError: a tensor is missing.
    """
    read = Reader(state, 'VideoMAEForVideoClassification')
    return {'encoder': _encoder(read), 'norm': read.norm('fc_norm'), 'head': read.dense('classifier')}


def _encoder(read):
    return {
        'embed': read.stem('videomae.embeddings.patch_embeddings.projection'),
        'blocks': read.blocks('videomae.layers'),
    }
