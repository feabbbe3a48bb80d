"""The order of the calls: modules `(batch, key) -> (loss, aux)`."""

from mim_jax.objectives.classification import Classification
from mim_jax.objectives.masked_prediction import MaskedPrediction, Term

__all__ = ['Classification', 'MaskedPrediction', 'Term']
