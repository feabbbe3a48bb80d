"""Weights of Hugging Face transformers' `ViTMAEForPreTraining` (arXiv 2111.06377) as parameters of ours."""

from collections.abc import Mapping

from mim_jax.interop.reader import Reader


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
    read = Reader(state, 'ViTMAEForPreTraining')
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
