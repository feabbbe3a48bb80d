"""MAR: Autoregressive Image Generation without Vector Quantization (arXiv 2406.11838): tokens of any numbers, each denoised by a small network; FID 1.55 on ImageNet 256.

    python -m mim_jax.main --config=configs/mar.py:cifar10 --workdir=DIR --config.data.path=IMAGES

Variants: tiny (digits, minutes on a laptop), cifar10 (patches of 4 pixels), and the paper's b, l, h at 256 pixels, on latents of configs/kl.py:kl16 that
tools.tokenize made. The paper's FID is of 800 epochs, 256 steps and guidance of 2.9, 3.0 and 3.2. Attention and projections are trained without dropout, variances of steps are
not learned, and there is no norm after the embedding, no position added after the decoder and none to the buffer in it.
"""

from configs.base import base, vit

SIZES = {  # encoder and decoder, width and depth of the head, side, patch, registers
    'tiny': (dict(width=96, depth=2, heads=4), (128, 2), 8, 2, 4),
    'cifar10': (dict(width=192, depth=3, heads=6), (256, 3), 32, 4, 8),
    'b': (dict(width=768, depth=12, heads=12), (1024, 6), 16, 1, 64),
    'l': (dict(width=1024, depth=16, heads=16), (1280, 8), 16, 1, 64),
    'h': (dict(width=1280, depth=20, heads=16), (1536, 12), 16, 1, 64),
}


def get_config(variant: str = 'b'):
    if variant not in SIZES:
        raise ValueError(f'no variant {variant!r}: use one of {", ".join(SIZES)}')
    size, head, side, patch, registers = SIZES[variant]
    c = base()
    grid = (side // patch,) * 2
    c.tokenizer = dict(name='patches', key='image', patch=(patch, patch))
    c.noise = dict(schedule=dict(name='cosine'), times=dict(name='uniform'))
    c.mask = dict(name='varying', low=0.7, mean=1.0, std=0.25)
    c.hide = dict(name='drop')
    c.encoder = vit(class_token=False, told='prefix', **size) | dict(
        registers=registers, positions='learned', grid=grid
    )
    c.predictor = dict(name='SelfAttention', positions='learned', grid=grid, **size)
    c.head = dict(name='DiffusionHead', width=head[0], depth=head[1])
    c.condition = dict(num_classes=1000, label_dropout=0.1)
    c.objective = dict(name='MaskedAutoregression', answer='noise', weighting='plain', draws=4)
    c.data.update(batch_size=2048, image_size=(side, side), canvas=(side, side), mean=(0.5,), std=(0.5,))
    c.optimizer.update(weight_decay=0.02, clip=3.0)
    c.schedule = dict(name='constant', lr=1e-4, warmup_steps=62_500, scale_lr_by=256)
    c.total_steps, c.ema = 500_000, 0.9999
    denoising = dict(name='ddim', steps=100, grid='even', eta=1.0, temperature=1.0)
    guidance = dict(b=2.9, l=3.0, h=3.2).get(variant, 1.5)
    sampler = dict(name='random_order', steps=256, guidance=guidance, clip=False, denoising=denoising)
    c.evals.sampling = dict(name='sampling', rows=80, sampler=sampler, hole=0.5)
    c.evals_often, c.evals_last = ('sampling', 'knn'), ('linear_probe',)
    if patch == 1:
        c.data.reader = dict(name='LatentReader')
        c.augment = dict(name='latents')
        c.smaller = 'configs/mar.py:cifar10'
        return c
    c.dtype, c.condition.num_classes = 'float32', 10
    c.schedule = dict(name='schedule', lr=1e-3, warmup_steps=500, end_lr=0.0, scale_lr_by=0)
    c.data.batch_size, c.total_steps, c.ema = 64, 20_000, 0.995
    c.augment.crop = None  # one that pads has black borders drawn
    c.log_every, c.eval_every, c.checkpoint_every = 100, 5000, 1000
    sampler.update(steps=16, clip=True, denoising=denoising | dict(steps=50))
    c.evals.sampling.sampler = sampler
    judge = vit(class_token=False, **size)
    c.evals.fidelity = dict(name='fidelity', sampler=sampler, samples=1000, batch_size=100, steps=1000, judge=judge)
    c.evals_last = ('linear_probe', 'fidelity')
    if variant == 'tiny':
        c.data.update(channels=1)
        c.augment.flip = False
        c.total_steps, c.schedule.warmup_steps, c.log_every, c.eval_every = 2000, 100, 50, 1000
    return c
