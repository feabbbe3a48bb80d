"""MaskDiT: Fast Training of Diffusion Models with Masked Transformers (arXiv 2306.09305): half of the noised patches are dropped.

    python -m mim_jax.main --config=configs/maskdit.py:b4 --workdir=DIR --config.data.path=/data/imagenet --config.condition.num_classes=1000

Variants: those of dit.py; the paper's FID 2.28 is of xl2. The network is told the place of the noise in EDM's grid of levels, not log(sigma) / 4. The same with _unmasked is the last stage, which goes on from --config.init=DIR.
"""

from configs.dit import LATENTS, SMALL
from configs.dit import get_config as dit


def get_config(variant: str = 'b4'):
    unmasked = variant.endswith('_unmasked')
    variant = variant.removesuffix('_unmasked')
    c = dit(variant)
    c.noise = dict(schedule=dict(name='karras'), times=dict(name='log_normal', mean=-1.2, std=1.2), spread=0.5)
    c.mask = dict(name='random', ratio=0.5)
    c.predictor = dict(name='SelfAttention', width=512, depth=8, heads=16)
    if variant in SMALL:
        c.predictor.update(width=96, depth=2, heads=4)
    elif variant in LATENTS:
        c.data.batch_size, c.total_steps = 1024, 2_000_000
    c.answers = ('edm',)
    denoised = dict(of='edm', on='visible', weight=1.0, weighting='plain', noised=False)
    c.terms = dict(denoised=denoised, reconstructed=denoised | dict(on='hidden', weight=0.1, noised=True))
    if unmasked:
        c.mask, c.init_part = dict(name='nothing'), 'all'
        del c.terms['reconstructed']
        c.schedule.lr /= 2
        c.total_steps //= 40
        c.schedule.warmup_steps = min(c.schedule.warmup_steps, c.total_steps // 10)
    for each in (c.evals.sampling, c.evals.fidelity):
        each.sampler = dict(
            name='ode', steps=40, grid='rooted', variable='ratio', guidance=1.5, interval=(0.0, 1.0), clip=False
        )
    return c
