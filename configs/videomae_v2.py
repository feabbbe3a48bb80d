"""VideoMAE V2 (arXiv 2303.16727), dual masking at scale: ViT-g, 90.0% on Kinetics-400 after the three stages.

    python -m mim_jax.main --config=configs/videomae_v2.py:vit_g14 --workdir=runs/one --config.data.path=/data/unlabelled
    python -m mim_jax.main --config=configs/videomae_v2_finetune.py:vit_g14_post --workdir=runs/two --config.init=runs/one --config.data.path=/data/k710
    python -m mim_jax.main --config=configs/videomae_v2_finetune.py:vit_g14 --workdir=runs/three --config.init=runs/two --config.data.path=/data/k400

Pretraining on unlabelled video, supervised post-pretraining on a labelled mixture, fine-tuning on the target. Variants: tiny (for a
laptop), s, b, l, h, g.
"""

from configs.videomae import DECODERS
from configs.videomae import get_config as videomae

HYBRID, EPOCHS, BATCH = 1_348_000, 1200, 8192
G_DECODER = (512, 4, 8)


def get_config(variant: str = 'vit_g14'):
    c = videomae(variant, DECODERS | dict(g=G_DECODER), dict(g=14))
    c.mask = dict(name='running_cell', ratio=0.9, decoder_ratio=0.5)
    if not c.encoder.size:
        return c
    c.data.batch_size, c.data.reader.clips = BATCH, 4
    c.total_steps = EPOCHS * HYBRID // BATCH
    c.schedule.warmup_steps, c.optimizer.clip = 120 * HYBRID // BATCH, 0.02
    c.eval_every, c.checkpoint_every = 20 * HYBRID // BATCH, 2 * HYBRID // BATCH
    c.smaller = 'configs/videomae_v2.py:tiny'
    if c.encoder.size == 'g':
        c.encoder.update(remat='full', scan=True)
        c.terms.pixels.predictor.remat = 'full'
        c.mesh.update(data=1, fsdp=-1)
    return c
