"""Neural Discrete Representation Learning (arXiv 1711.00937): VQ-VAE, 4.67 bits per dimension on CIFAR-10; images to codes for other models.

    python -m mim_jax.main --config=configs/vq.py:b --workdir=DIR --config.data.path=/data/imagenet

The variants of configs/fsq.py, with a learned codebook on the unit sphere (ViT-VQGAN, 2110.04627).
"""

from configs.fsq import get_config as fsq


def get_config(variant: str = 'b'):
    c = fsq(variant)
    c.bottleneck = dict(name='VQ', size=128 if variant == 'tiny' else 1024, width=8, normalise=True, commitment=0.25)
    return c
