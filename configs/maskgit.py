"""MaskGIT: Masked Generative Image Transformer (arXiv 2202.04200): FID 6.18 on ImageNet 256 x 256 in 8 steps.

    python -m mim_jax.tools.tokenize /data/imagenet CODES --run=RUN_OF_AN_AUTOENCODER
    python -m mim_jax.main --config=configs/maskgit.py:b --workdir=DIR --config.data.path=CODES --config.condition.num_classes=1000

Variants: tiny (the 17 grey levels of handwritten digits as tokens, minutes on a laptop), cifar10 (8 x 8 codes, ten classes), b (the paper's, 16 x 16
codes). RUN is one of fsq.py or vq.py. Classes are told by adaptive norms, as in DiT, not by a token.
"""

from configs.mdlm import get_config as mdlm

SIZES = dict(tiny=(128, 4, 4, 8), cifar10=(256, 6, 4, 8), b=(768, 24, 8, 16))  # width, depth, heads, codes along a side


def get_config(variant: str = 'b'):
    if variant not in SIZES:
        raise ValueError(f'no variant {variant!r}: use one of {", ".join(SIZES)}')
    width, depth, heads, side = SIZES[variant]
    c = mdlm('b' if variant == 'b' else 'tiny')
    c.data.reader = dict(name='TokenReader', shape=(), vocab=0, tokenizer='', alphabet='')
    c.data.path = 'builtin:digit_levels'
    c.tokenizer.grid = (side, side)
    c.encoder.update(width=width, depth=depth, heads=heads)
    c.mask.update(schedule='cosine', by='count')
    c.objective.update(weighting='mean', smoothing=0.1)
    c.condition.update(num_classes=10)
    sampler = dict(
        name='confidence', steps=12, schedule='cosine', noise=4.5, temperature=1.0, top_k=0, top_p=1.0, guidance=1.0
    )
    c.evals.generation = dict(name='generation', rows=80, sampler=sampler)
    c.evals.fidelity = dict(name='fidelity', samples=1000, batch_size=100, steps=500, lr=2e-3, sampler=sampler)
    c.evals.fid = dict(name='fid', network='', reference='', samples=50_000, batch_size=100, sampler=sampler)
    c.evals.likelihood.draws = 2
    c.evals_often, c.evals_last = ('generation',), ('likelihood', 'fidelity')
    c.optimizer.update(b2=0.96, weight_decay=4.5e-2)
    c.smaller = 'configs/maskgit.py:tiny' if variant == 'b' else ''
    if variant == 'b':
        c.data.batch_size, c.condition.num_classes = 256, 1000
        c.total_steps, c.schedule.warmup_steps, c.schedule.lr = 1_500_000, 5000, 1e-4
    if variant == 'cifar10':
        c.data.batch_size, c.total_steps, c.schedule.lr = 64, 6000, 1e-3
    return c
