"""DiT: Scalable Diffusion Models with Transformers (arXiv 2212.09748), without masks: what masked diffusion is compared with.

    python -m mim_jax.main --config=configs/dit.py:b4 --workdir=DIR --config.data.path=/data/imagenet --config.condition.num_classes=1000
    python -m mim_jax.main --config=configs/dit.py:xl2 --workdir=DIR --config.data.path=LATENTS

Variants of pixels: tiny (digits, minutes on a laptop), cifar10 (32 pixels), s4, b4 and l4 (64 pixels, patches of 4). Of latents that tools.tokenize made with a
run of configs/kl.py: cifar10_latents, and the paper's s2, b2, l2 and xl2 (32 x 32 for 256 pixels), of which XL has FID 2.27: there with learned variances, norms
without scale and bias, and latents drawn from the autoencoder's posterior where these are its means. Read by noise level, an unmasked DiT is also the encoder of
DDAE (2303.09769).
"""

from configs.base import base, vit

SIZES = {  # encoder, patch, side
    'tiny': (dict(width=96, depth=4, heads=4), 2, 8),
    'cifar10': (dict(width=192, depth=6, heads=6), 4, 32),
    's4': (dict(size='s'), 4, 64),
    'b4': (dict(size='b'), 4, 64),
    'l4': (dict(size='l'), 4, 64),
    'cifar10_latents': (dict(width=192, depth=6, heads=6), 1, 8),
    's2': (dict(size='s'), 2, 32),
    'b2': (dict(size='b'), 2, 32),
    'l2': (dict(size='l'), 2, 32),
    'xl2': (dict(width=1152, depth=28, heads=16), 2, 32),
}
SMALL, LATENTS = ('tiny', 'cifar10', 'cifar10_latents'), ('cifar10_latents', 's2', 'b2', 'l2', 'xl2')


def get_config(variant: str = 'b4'):
    if variant not in SIZES:
        raise ValueError(f'no variant {variant!r}: use one of {", ".join(SIZES)}')
    size, patch, side = SIZES[variant]
    c = base()
    c.tokenizer = dict(name='patches', key='image', patch=(patch, patch))
    c.noise = dict(schedule=dict(name='cosine'), times=dict(name='uniform'), spread=0.0)
    c.mask = dict(name='nothing')
    c.encoder = vit(class_token=False, **size)
    c.predictor = dict(name='Linear')
    c.condition = dict(num_classes=10, label_dropout=0.1)
    c.answers = ('noise',)
    c.terms = dict(noise=dict(of='noise', on='all', weight=1.0, weighting='plain', noised=False))
    c.clean_terms = dict()
    c.objective = dict(name='Denoise', clean_every=0)
    c.data.update(batch_size=1024, image_size=(side, side), canvas=(side, side), mean=(0.5,), std=(0.5,))
    c.augment.update(scale=(0.8, 1.0), eval_crop=1.0)
    c.optimizer.clip, c.ema = 1.0, 0.9999
    c.total_steps, c.schedule.warmup_steps = 1_000_000, 50_000
    sampler = dict(name='ddim', steps=125, grid='even', eta=1.0, guidance=1.5, interval=(0.0, 1.0), clip=True)
    c.evals.sampling = dict(name='sampling', rows=80, sampler=sampler, hole=0.5)
    c.evals.fidelity = dict(
        name='fidelity', sampler=sampler, samples=1000, batch_size=100, steps=1000, judge=vit(class_token=False, **size)
    )
    c.evals.bits_per_dim = dict(name='bits_per_dim', draws=8, batch_size=32)
    c.evals_often, c.evals_last = ('sampling', 'knn'), ('linear_probe',)
    if variant in SMALL:
        c.dtype = 'float32'
        c.data.batch_size, c.schedule.lr, c.schedule.scale_lr_by, c.ema = 64, 1e-3, 0, 0.995
        c.augment.crop = None  # one that pads has black borders drawn
        c.total_steps, c.schedule.warmup_steps = 20_000, 500
        c.log_every, c.eval_every, c.checkpoint_every = 100, 5000, 1000
        c.evals.sampling.sampler.steps = c.evals.fidelity.sampler.steps = 50
        c.evals_last = ('linear_probe', 'fidelity')
    if variant == 'tiny':
        c.data.update(channels=1, mean=(0.5,), std=(0.5,))
        c.augment.flip = False
        c.total_steps, c.schedule.warmup_steps, c.log_every, c.eval_every = 2000, 100, 50, 1000
    if variant in LATENTS:  # their size, mean and std are those of the shards
        c.data.reader, c.data.channels = dict(name='LatentReader'), 4
        c.augment = dict(name='latents')
        c.noise.schedule = dict(name='linear')  # not cosine: nothing clips what alpha near 0 blows up
        c.evals.sampling.sampler.clip = c.evals.fidelity.sampler.clip = False
    if variant in LATENTS and variant not in SMALL:
        c.smaller = 'configs/dit.py:cifar10_latents'
        c.data.batch_size, c.condition.num_classes = 256, 1000
        c.optimizer.update(b2=0.999, weight_decay=0.0, clip=0.0)
        c.schedule = dict(name='constant', lr=1e-4, warmup_steps=0, scale_lr_by=0)
        c.total_steps = 7_000_000 if variant == 'xl2' else 400_000
        c.evals.sampling.sampler.steps = c.evals.fidelity.sampler.steps = 250
    return c
