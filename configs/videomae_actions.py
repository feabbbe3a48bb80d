"""VideoMAE (arXiv 2203.12602) with space-time masks (2205.09113) for a few hundred small grey videos; see `benchmarks/gains.py`.

    python -m mim_jax.main --config=configs/videomae_actions.py --workdir=DIR --config.data.path=labels.csv

Made for UTD-MHAD depth video (27 actions, 96 px, 2 s): eight frames spread over the whole action, and no mirror images, for left is not right.
A tube hides an arm in every frame, and on this coarse grid nothing tells where it went: masks drawn for each frame leave something to infer.
"""

from configs.base import vit
from configs.videomae import get_config as videomae

FRAMES, SIDE, CUBE = 8, 32, (2, 8, 8)
GRID = (FRAMES // CUBE[0], SIDE // CUBE[1], SIDE // CUBE[2])


def get_config():
    c = videomae('tiny')
    c.tokenizer.update(patch=CUBE, native=GRID)
    c.encoder = vit(width=64, depth=3, heads=2, class_token=False, positions='sinusoid', grid=GRID)
    c.terms.pixels.predictor.update(width=32, depth=1, heads=1, grid=GRID)
    c.mask = dict(name='random', ratio=0.75)
    c.terms.pixels.target = dict(
        name='pixels', key='video', norm=False
    )  # flat ground, normalised, is the codec's noise
    c.data.update(image_size=(SIDE, SIDE), canvas=(96, 96), channels=1, mean=(0.1,), std=(0.25,), batch_size=64)
    c.data.reader.update(frames=FRAMES, sampling='segment', clips=4)
    c.data.eval_reader.sampling = 'segment'
    c.augment.update(crop='random_resized', scale=(0.5, 0.8), eval_crop=0.8)
    c.total_steps, c.schedule.warmup_steps, c.schedule.lr = 10_000, 500, 8e-3
    c.log_every, c.eval_every, c.checkpoint_every = 50, 10_000, 500
    for tune in (c.evals.finetune, c.evals.scratch):
        tune.update(steps=3000, batch_size=32, lr=1.6e-2, drop_path=0.0, mixup=0.0, cutmix=0.0, clips=2, crops=1)
        tune.reader = dict(clips=1)
        tune.augment = dict(crop='random_resized', scale=(0.5, 0.8))
    c.evals.finetune.layer_decay = 0.75
    c.evals.still = dict(
        c.evals.finetune.to_dict(), name='finetune', metric='still', reader=dict(clips=1, sampling='still')
    )
    c.evals_often, c.evals_last = ('reconstruction',), ('knn', 'linear_probe', 'finetune', 'scratch', 'still')
    return c
