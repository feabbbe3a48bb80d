"""VideoMAE (arXiv 2203.12602), masked autoencoders for video: ViT-B, 1600 epochs, 81.5% on Kinetics-400 fine-tuned.

    python -m mim_jax.main --config=configs/videomae.py:vit_b16 --workdir=DIR --config.data.path=/data/kinetics400

Variants: tiny (for a laptop), s, b, l, h, or vit_l16 and the like. The defaults are the paper's Kinetics-400 recipe; for Something-Something
set data.reader.stride=2. Without data.path it trains on digits that move.
"""

from configs.base import base, size_and_patch, vit

KINETICS, EPOCHS, BATCH = 240_436, 1600, 1024
FRAMES, TUBELET = 16, 2
PATCHES = dict(h=16)  # images take 14
DECODERS = dict(tiny=(64, 2, 2), s=(192, 4, 3), b=(384, 4, 6), l=(512, 4, 8), h=(640, 4, 8))  # width, depth, heads


def get_config(variant: str = 'vit_b16', decoders: dict = DECODERS, patches: dict = PATCHES):
    size, patch = size_and_patch(variant, tuple(decoders), patches)
    c = base()
    c.data.update(
        path='builtin:moving_digits',
        batch_size=BATCH,
        cpu_batch_size=4,
        canvas=(256, 340),
        workers=0,
        reader=dict(
            name='VideoReader',
            frames=FRAMES,
            stride=4,
            sampling='dense',
            clips=1,
            fps=0.0,
            backend='pyav',
            timeout=60.0,
        ),
        eval_reader=dict(sampling='dense', stride=4),
    )
    c.smaller = 'configs/videomae.py:tiny'
    if size == 'tiny':
        c.data.update(image_size=(64, 64), canvas=(64, 64))
    grid = (FRAMES // TUBELET, *(side // patch for side in c.data.image_size))
    c.tokenizer = dict(name='patches', key='video', patch=(TUBELET, patch, patch), native=grid)
    c.mask = dict(name='tube', ratio=0.9)
    c.hide = dict(name='drop')
    c.encoder = vit(size, class_token=False, positions='sinusoid', grid=grid)
    c.objective = dict(name='MaskedPrediction')
    width, depth, heads = decoders[size]
    decoder = dict(name='SelfAttention', width=width, depth=depth, heads=heads, positions='sinusoid', grid=grid,
                   remat='none', scan=False)  # fmt: skip
    target = dict(name='pixels', key='video', norm='channel')
    c.terms = dict(pixels=dict(predictor=decoder, target=target, loss=dict(name='mse'), on='hidden', weight=1.0))
    c.augment = dict(
        name='video', crop='multi_scale', scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), flip=False, eval_crop=0.875
    )
    c.total_steps = EPOCHS * KINETICS // BATCH
    c.schedule.warmup_steps = 40 * KINETICS // BATCH
    c.log_every, c.eval_every, c.checkpoint_every = 20, 20 * KINETICS // BATCH, 2 * KINETICS // BATCH
    c.evals.reconstruction.rows = 4
    evaluations(c)
    if size == 'tiny':
        tiny(c)
    return c


def evaluations(c) -> None:
    """The paper's fine-tuning: repeated augmentation, and at test 5 clips of 3 crops."""
    for tune in (c.evals.finetune, c.evals.scratch):
        tune.update(epochs=75, batch_size=512, mixup=0.8, cutmix=1.0, clips=5, crops=3, reader=dict(clips=2))
        tune.augment = dict(
            crop='random_resized', scale=(0.08, 1.0), randaugment=dict(magnitude=7.0, layers=4), erase=0.25
        )
    c.evals.finetune.layer_decay = 0.75
    c.evals.attentive_probe.weight_decay = 1e-2
    for name in ('knn', 'linear_probe', 'attentive_probe', 'few_shot'):
        c.evals[name].batch_size = 32
    c.evals_often = ('reconstruction',)
    c.evals_last = ('knn', 'linear_probe')


def tiny(c) -> None:
    """Minutes on two cores."""
    c.encoder = vit(width=96, depth=4, heads=3, class_token=False, positions='sinusoid', grid=c.encoder.grid)
    c.data.reader.stride, c.data.eval_reader.stride = 1, 1
    c.data.update(batch_size=32, cpu_batch_size=0)
    c.augment.update(crop=None, eval_crop=1.0)
    c.mask.ratio = 0.75
    c.total_steps, c.schedule.warmup_steps, c.schedule.lr, c.dtype = 1000, 50, 8e-3, 'float32'
    c.log_every, c.eval_every, c.checkpoint_every = 20, 500, 500
    c.smaller = ''
    c.evals_last = ('linear_probe', 'knn')
