"""DDAE: Denoising Diffusion Autoencoders are Unified Self-supervised Learners (arXiv 2303.09769): linear probe 95.9% on CIFAR-10, of the best layer and noise.

    python -m mim_jax.main --config=configs/ddae.py:tiny --workdir=runs/ddae

Variants: those of dit.py, trained without classes; at the end a linear probe on every block at every level of noise, and a picture of it.
The paper's best encoder is a U-Net of EDM; here it is a Transformer, which it has too.
"""

from configs.dit import get_config as dit


def get_config(variant: str = 'b4'):
    c = dit(variant)
    c.condition.num_classes = 0
    c.evals.sampling.sampler.guidance = c.evals.fidelity.sampler.guidance = 1.0
    c.evals.layer_noise_probe = dict(
        name='layer_noise_probe', times=(0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7), epochs=30, seed=0
    )
    c.evals_last = ('linear_probe', 'layer_noise_probe')
    return c
