"""MAE (arXiv 2111.06377) in two minutes on two cores: scikit-learn's handwritten digits, 8 x 8 pixels, nothing to download.

python -m mim_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from configs.base import vit
from configs.mae import get_config as mae


def get_config():
    c = mae('tiny')
    c.tokenizer.patch = (2, 2)
    c.encoder = vit(width=96, depth=4, heads=4)
    decoder = c.terms.pixels.predictor
    decoder.width, decoder.depth, decoder.heads = 64, 2, 4
    c.terms.pixels.target.norm = False
    c.data.update(batch_size=128, image_size=(8, 8), canvas=(8, 8), channels=1, mean=(0.305,), std=(0.376,))
    c.augment.update(crop='pad', pad=1, flip=False, eval_crop=1.0)
    c.total_steps, c.schedule.warmup_steps, c.schedule.lr = 1500, 100, 2e-3
    c.log_every, c.eval_every, c.checkpoint_every = 50, 750, 500
    return c
