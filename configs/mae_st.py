"""Masked Autoencoders As Spatiotemporal Learners (arXiv 2205.09113): ViT-L, 800 epochs, 84.8% on Kinetics-400 fine-tuned.

    python -m mim_jax.main --config=configs/mae_st.py:vit_l16 --workdir=DIR --config.data.path=/data/kinetics400

Variants as configs/videomae.py. Random space-time masks, positions learned for space and time apart, one frame of every tubelet is
predicted, and four clips are taken from each decoded video.
"""

from configs.base import vit
from configs.videomae import KINETICS
from configs.videomae import get_config as videomae

EPOCHS, BATCH = 800, 512


def get_config(variant: str = 'vit_l16'):
    c = videomae(variant)
    c.mask = dict(name='random', ratio=0.9)
    shape = {name: c.encoder[name] for name in ('width', 'depth', 'heads')}
    c.encoder = vit(c.encoder.size, class_token=True, positions='separable', grid=c.encoder.grid, **shape)
    decoder = c.terms.pixels.predictor
    decoder.positions = 'separable'
    c.terms.pixels.target = dict(name='pixels', key='video', norm=True, first=1 / c.tokenizer.patch[0])
    c.augment.update(crop='random_resized', scale=(0.5, 1.0), flip=True)
    c.data.reader.clips = 4
    if not c.encoder.size:
        c.augment.update(crop=None, flip=False)
        c.data.reader.clips = 2
        return c
    decoder.update(width=512, depth=4, heads=16)
    c.data.batch_size = BATCH
    c.schedule.lr, c.optimizer.clip = 1.6e-3, 0.02
    c.total_steps = EPOCHS * KINETICS // BATCH
    c.schedule.warmup_steps = 120 * KINETICS // BATCH
    c.eval_every, c.checkpoint_every = 20 * KINETICS // BATCH, 2 * KINETICS // BATCH
    return c
