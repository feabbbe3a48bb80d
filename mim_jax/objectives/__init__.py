"""The order of the calls: modules `(batch, key) -> (loss, aux)`."""

from mim_jax.objectives.autoencoding import Autoencoding
from mim_jax.objectives.classification import Classification
from mim_jax.objectives.denoise import Answer, Denoise
from mim_jax.objectives.masked_autoregression import MaskedAutoregression
from mim_jax.objectives.masked_prediction import MaskedPrediction, Term
from mim_jax.objectives.sequence import Sequence
from mim_jax.objectives.token_diffusion import TokenDiffusion

__all__ = [
    'Answer', 'Autoencoding', 'Classification', 'Denoise', 'MaskedAutoregression', 'MaskedPrediction', 'Sequence', 'Term', 'TokenDiffusion',
]  # fmt: skip
