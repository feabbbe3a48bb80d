"""Encoders and predictors (flax.linen). They know nothing of mask policy, sharding, weight decay or freezing."""

from mim_jax.models.predictors import CrossAttention, Linear, SelfAttention
from mim_jax.models.vit import ViT

__all__ = ['CrossAttention', 'Linear', 'SelfAttention', 'ViT']
