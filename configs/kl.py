"""High-Resolution Image Synthesis with Latent Diffusion Models (arXiv 2112.10752): images to continuous latents; LDM-4 on top: FID 3.60 on ImageNet 256.

    python -m mim_jax.main --config=configs/kl.py:b --workdir=DIR --config.data.path=/data/imagenet

Variants: those of configs/fsq.py with 4 channels, tiny (digits, a minute), cifar10 (8 x 8 latents), s and b (256 pixels, 32 x 32 latents, as Stable
Diffusion's); kl16 has the 16 x 16 latents of 16 channels of MAR (2406.11838). The paper adds the losses of VQGAN; here it is the pixels alone.
"""

from configs.fsq import get_config as fsq

SIZES = {  # the variant of fsq.py, pixels of a latent, channels of each resolution, channels of a latent
    'tiny': ('tiny', 2, (32,), 4),
    'cifar10': ('cifar10', 4, (32, 64), 4),
    's': ('s', 8, (64, 64, 128, 256), 4),
    'b': ('b', 8, (128, 256, 512, 512), 4),
    'kl16': ('b', 16, (128, 128, 256, 256, 512), 16),
}


def get_config(variant: str = 'b'):
    if variant not in SIZES:
        raise ValueError(f'no variant {variant!r}: use one of {", ".join(SIZES)}')
    like, patch, widths, channels = SIZES[variant]
    c = fsq(like)
    c.tokenizer.patch = (patch, patch)
    c.encoder.widths, c.decoder.widths = widths, widths[::-1]
    c.bottleneck = dict(name='KL', channels=channels, weight=1e-6)
    c.smaller = c.smaller.replace('fsq', 'kl')
    return c
