"""I-JEPA, image joint-embedding predictive architecture (arXiv 2301.08243): ViT-H/14, 300 epochs, 79.3% on ImageNet by a linear probe.

    python -m mim_jax.main --config=configs/ijepa.py:vit_h14 --workdir=DIR --config.data.path=/data/imagenet

Variants: tiny (for a laptop), s, b, l, h, or vit_h16 and the like. The defaults are the published ImageNet recipe, but for what weights begin as
(published: normal of deviation 0.02, here Xavier's), for the mask token, which no weight decay shrinks here, and for what the mask's docstring says.
"""

from configs.base import base, size_and_patch, vit

IMAGENET, EPOCHS, BATCH = 1_281_167, 300, 2048
PREDICTORS = dict(tiny=(48, 2), s=(192, 6), b=(384, 6), l=(384, 12), h=(384, 12))  # width, depth
HEADS = dict(tiny=3, s=6, b=12, l=16, h=16)


def get_config(variant: str = 'vit_h14'):
    size, patch = size_and_patch(variant)
    c = base()
    c.tokenizer = dict(name='patches', key='image', patch=(patch, patch))
    c.mask = dict(name='multiblock', blocks=4, scale=(0.15, 0.2), aspect=(0.75, 1.5), context=(0.85, 1.0), keep=0.28)
    c.hide = dict(name='drop')
    c.encoder = vit(size, class_token=False)
    c.objective = dict(name='MaskedPrediction')
    width, depth = PREDICTORS[size]
    predictor = dict(name='SelfAttention', width=width, depth=depth, heads=HEADS[size], remat='none', scan=False)
    target = dict(name='features', norm=True)
    c.terms = dict(
        features=dict(predictor=predictor, target=target, loss=dict(name='smooth_l1'), on='hidden', weight=1.0)
    )
    c.ema, c.end_ema = 0.996, 1.0  # of the teacher, which is what evaluations see
    c.data.update(batch_size=BATCH, canvas=(512, 512), workers=8)
    c.augment.update(scale=(0.3, 1.0), flip=False)
    c.optimizer.update(b2=0.999, weight_decay=0.04, end_weight_decay=0.4)
    c.total_steps = EPOCHS * IMAGENET // BATCH
    c.schedule.update(lr=1e-3, start_lr=2e-4, end_lr=1e-6, warmup_steps=40 * IMAGENET // BATCH, scale_lr_by=0)
    c.log_every, c.eval_every, c.checkpoint_every = 100, 20 * IMAGENET // BATCH, 5 * IMAGENET // BATCH
    c.evals_often = ('knn',)
    c.smaller = 'configs/ijepa.py:tiny'
    if size == 'h':  # with its teacher it would not fit a chip of v5e
        c.mesh.update(data=1, fsdp=-1)
    if size == 'tiny':
        c.encoder = vit(width=96, depth=4, heads=3, class_token=False)
        c.data.update(batch_size=128, image_size=(32, 32), canvas=(64, 64), workers=0)
        c.total_steps, c.schedule.warmup_steps, c.dtype, c.smaller = 600, 60, 'float32', ''
        c.log_every, c.eval_every, c.checkpoint_every = 20, 300, 300
    return c
