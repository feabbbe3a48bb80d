"""Finite Scalar Quantization: VQ-VAE Made Simple (arXiv 2309.15505): images to codes; MaskGIT on top of 1000 of them: FID 4.53 on ImageNet 256, VQ 4.51.

    python -m mim_jax.main --config=configs/fsq.py:b --workdir=DIR --config.data.path=/data/imagenet

Variants: tiny (digits, a minute), cifar10 (32 pixels, a quarter of an hour on two cores), s and b (256 pixels, 16 x 16 codes).
The paper trains with the losses of VQGAN (2012.09841); here it is the pixels alone, so that codes are learned without another model.
"""

from configs.base import base

SIZES = {  # pixels of an image and of a code, channels of each resolution, residual blocks of each, levels
    'tiny': (8, 2, (32,), 1, (5, 5, 5)),
    'cifar10': (32, 4, (32, 64), 1, (8, 8, 8, 8)),
    's': (256, 16, (64, 64, 128, 128, 256), 1, (8, 5, 5, 5)),
    'b': (256, 16, (128, 128, 256, 256, 512), 2, (8, 5, 5, 5)),
}


def get_config(variant: str = 'b'):
    if variant not in SIZES:
        raise ValueError(f'no variant {variant!r}: use one of {", ".join(SIZES)}')
    side, patch, widths, depth, levels = SIZES[variant]
    c = base()
    c.tokenizer = dict(name='patches', key='image', patch=(patch, patch))
    c.encoder = dict(name='ConvEncoder', widths=widths, depth=depth)
    c.bottleneck = dict(name='FSQ', levels=levels)
    c.decoder = dict(name='ConvDecoder', widths=widths[::-1], depth=depth)
    c.losses = dict(mse=1.0, l1=0.0)
    c.objective = dict(name='Autoencoding')
    c.data.update(batch_size=256, image_size=(side, side), canvas=(side, side), mean=(0.5,), std=(0.25,))
    c.augment.update(crop=None, eval_crop=1.0)
    c.optimizer.update(b2=0.99, weight_decay=1e-4)
    c.total_steps, c.schedule.warmup_steps, c.schedule.lr = 500_000, 5000, 4e-4
    c.log_every, c.eval_every, c.checkpoint_every = 100, 10_000, 5000
    c.evals.update(psnr=dict(name='psnr', batch_size=256), autoencoded=dict(name='autoencoded', rows=8))
    c.evals_often, c.evals_last = ('psnr', 'autoencoded'), ()
    if side == 256:
        c.smaller = 'configs/fsq.py:cifar10'
        c.augment.update(crop='random_resized', scale=(0.5, 1.0))
        c.data.update(canvas=(512, 512), workers=8)
    else:
        c.dtype = 'float32'
        c.data.batch_size, c.schedule.warmup_steps, c.schedule.lr = 64, 100, 8e-3
        c.log_every, c.eval_every, c.checkpoint_every, c.total_steps = 50, 1000, 500, 5000
    if variant == 'tiny':
        c.data.update(channels=1)
        c.augment.flip = False
        c.total_steps = 1500
    return c
