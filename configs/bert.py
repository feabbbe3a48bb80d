"""BERT (arXiv 1810.04805), masked language modelling of 15% of the tokens: 84.6% on MNLI fine-tuned (base).

    python -m mim_jax.main --config=configs/bert.py:b --workdir=DIR --config.data.path=FOLDER_OR_FILE

Variants: those of mdlm.py; the paper's b has 512 tokens of WordPiece: --config.data.reader.tokenizer=hf:bert-base-uncased. Without next-sentence
prediction, and with rotary positions. It is the objective of MDLM with one level and equal weights, so bounds and samples can be had of it too.
"""

from configs.mdlm import get_config as mdlm


def get_config(variant: str = 'b'):
    c = mdlm(variant)
    c.mask = dict(name='random', ratio=0.15)
    c.hide = dict(name='bert', random=0.1, kept=0.1)
    c.objective.weighting = 'mean'
    c.optimizer.weight_decay = 0.01
    c.evals_often, c.ema = ('likelihood', 'pseudo_likelihood'), 0.0
    if variant != 'tiny':
        c.data.reader.length, c.data.batch_size, c.schedule.lr, c.schedule.warmup_steps = 512, 256, 1e-4, 10_000
        c.smaller = 'configs/bert.py:tiny'
    return c
