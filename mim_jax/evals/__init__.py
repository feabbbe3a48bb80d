"""What a representation is worth: `NAME(objective, data, **options)` is built once and maps params to {metric: value}."""

from mim_jax.evals.accuracy import accuracy
from mim_jax.evals.attentive_probe import attentive_probe
from mim_jax.evals.autoencoded import autoencoded, psnr
from mim_jax.evals.bits_per_dim import bits_per_dim
from mim_jax.evals.few_shot import few_shot
from mim_jax.evals.fid import fid
from mim_jax.evals.fidelity import fidelity
from mim_jax.evals.finetune import finetune
from mim_jax.evals.generation import generation
from mim_jax.evals.knn import knn
from mim_jax.evals.layer_noise_probe import layer_noise_probe
from mim_jax.evals.likelihood import likelihood, pseudo_likelihood
from mim_jax.evals.linear_probe import linear_probe
from mim_jax.evals.reconstruction import reconstruction
from mim_jax.evals.sampling import sampling

__all__ = [
    'accuracy', 'attentive_probe', 'autoencoded', 'bits_per_dim', 'few_shot', 'fid', 'fidelity', 'finetune', 'generation', 'knn', 'layer_noise_probe', 'likelihood', 'linear_probe',
    'pseudo_likelihood', 'psnr', 'reconstruction', 'sampling',
]  # fmt: skip
LABEL_FREE = (
    'autoencoded',
    'bits_per_dim',
    'fid',
    'generation',
    'likelihood',
    'pseudo_likelihood',
    'psnr',
    'reconstruction',
    'sampling',
)  # all others need labels
