"""UMD: Unified Auto-Encoding with Masked Diffusion (arXiv 2406.17688): one network whose features are probed and which draws images.

    python -m mim_jax.main --config=configs/umd.py:tiny --workdir=runs/umd
    python -m mim_jax.main --config=configs/umd.py:b4 --workdir=DIR --config.data.path=/data/imagenet

Variants: those of dit.py; b4 is the paper's on ImageNet at 64 pixels. Every second row comes without noise, is told no class and has 75% of its patches
dropped, to be reconstructed; of the others 37.5% are dropped, noise is asked of what is left and pixels (or latents) of what is not. The paper
tells classes in a second stage only, and its decoder reads the mean of the four registers, this one all of them.
"""

from configs.dit import LATENTS, SIZES, SMALL
from configs.dit import get_config as dit

DEPTHS = dict(tiny=2, cifar10=2, s4=4, b4=4, l4=8, cifar10_latents=2, s2=4, b2=4, l2=8, xl2=8)  # of the decoder
WIDTHS = dict(tiny=(96, 4), cifar10=(192, 6), s4=(384, 6), b4=(768, 12), l4=(1024, 16))
WIDTHS |= dict(cifar10_latents=(192, 6), s2=(384, 6), b2=(768, 12), l2=(1024, 16), xl2=(1152, 16))


def get_config(variant: str = 'b4'):
    c = dit(variant)
    patch, side = SIZES[variant][1:]
    grid = (side // patch,) * 2
    c.mask = dict(name='random', ratio=0.375)
    c.clean_mask = dict(name='random', ratio=0.75)
    c.encoder.update(registers=4, positions='learned', grid=grid)
    width, heads = WIDTHS[variant]
    c.predictor = dict(
        name='SelfAttention', width=width, depth=DEPTHS[variant], heads=heads, positions='learned', grid=grid
    )
    c.answers = ('clean', 'noise')
    clean = dict(of='clean', on='hidden', weight=0.5, weighting='plain', noised=False)
    c.terms = dict(noise=clean | dict(of='noise', on='visible'), clean=clean)
    c.clean_terms = dict(clean=clean | dict(weight=1.0))
    c.objective.clean_every = 2
    if variant in LATENTS and variant not in SMALL:  # trained as on pixels
        pixels = dit('b4')
        c.data.batch_size, c.total_steps = pixels.data.batch_size, pixels.total_steps
        c.optimizer, c.schedule = pixels.optimizer, pixels.schedule
    return c
