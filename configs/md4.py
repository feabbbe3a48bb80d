"""MD4: Simplified and Generalized Masked Diffusion for Discrete Data (arXiv 2406.04329): at most 1.37 bits a character on text8.

    python -m mim_jax.main --config=configs/md4.py:b --workdir=DIR --config.data.path=text8.txt

Variants: those of mdlm.py; b is the paper's for text8: rows of 256 characters cut without regard to documents, and a network that is told
the time. Other schedules: --config.mask.schedule=cosine, or polynomial with mask.power; mask.steps=1000 trains the discrete-time bound.
"""

from configs.mdlm import get_config as mdlm


def get_config(variant: str = 'b'):
    c = mdlm(variant)
    c.condition.level = True
    if variant == 'tiny':
        c.smaller = ''
        return c
    c.data.reader.update(length=256, tokenizer='characters', documents='cut')
    c.schedule.lr, c.schedule.warmup_steps, c.optimizer.weight_decay = 5e-4, 2000, 0.03
    c.smaller = 'configs/md4.py:tiny'
    return c
