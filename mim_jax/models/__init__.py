"""Encoders and predictors (flax.linen). They know nothing of mask policy, sharding, weight decay or freezing."""

from mim_jax.models.bottlenecks import FSQ, KL, VQ
from mim_jax.models.conv import ConvDecoder, ConvEncoder
from mim_jax.models.heads import DiffusionHead
from mim_jax.models.predictors import CrossAttention, Linear, SelfAttention
from mim_jax.models.vit import Transformer, ViT

__all__ = [
    'ConvDecoder', 'ConvEncoder', 'CrossAttention', 'DiffusionHead', 'FSQ', 'KL', 'Linear', 'SelfAttention', 'Transformer', 'VQ', 'ViT',
]  # fmt: skip
