"""Masked Autoencoders Are Scalable Vision Learners (arXiv 2111.06377): ViT-L/16, 1600 epochs, 85.9% on ImageNet fine-tuned.

    python -m mim_jax.main --config=configs/mae.py:vit_l16 --workdir=DIR --config.data.path=/data/imagenet

Variants: tiny (for a laptop), s, b, l, h, or vit_b32 and the like. The defaults are the paper's ImageNet recipe.
"""

from configs.base import base, size_and_patch, vit

IMAGENET, EPOCHS, BATCH = 1_281_167, 1600, 4096


def get_config(variant: str = 'vit_l16'):
    size, patch = size_and_patch(variant)
    c = base()
    c.tokenizer = dict(name='patches', key='image', patch=(patch, patch))
    c.mask = dict(name='random', ratio=0.75)
    c.hide = dict(name='drop')
    c.encoder = vit(size)
    c.objective = dict(name='MaskedPrediction')
    decoder = dict(name='SelfAttention', width=512, depth=8, heads=16, remat='none', scan=False)
    c.terms = dict(
        pixels=dict(
            predictor=decoder, target=dict(name='pixels', norm=True), loss=dict(name='mse'), on='hidden', weight=1.0
        )
    )
    c.data.update(batch_size=BATCH, canvas=(512, 512), workers=8)
    c.total_steps = EPOCHS * IMAGENET // BATCH
    c.schedule.warmup_steps = 40 * IMAGENET // BATCH
    c.log_every, c.eval_every, c.checkpoint_every = 100, 20 * IMAGENET // BATCH, 5 * IMAGENET // BATCH
    if size == 'tiny':
        decoder = c.terms.pixels.predictor
        decoder.width, decoder.depth, decoder.heads = 96, 2, 3
        c.data.update(batch_size=128, image_size=(32, 32), canvas=(64, 64), workers=0)
        c.total_steps, c.schedule.warmup_steps, c.schedule.lr, c.dtype = 600, 60, 1e-3, 'float32'
        c.log_every, c.eval_every, c.checkpoint_every = 20, 300, 300
    return c
