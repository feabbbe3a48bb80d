"""MDLM (arXiv 2406.07524), masked diffusion language models: 169 M parameters, perplexity at most 23.2 on OpenWebText.

    python -m mim_jax.main --config=configs/mdlm.py:b --workdir=DIR --config.data.path=FOLDER_OR_FILE

Variants: tiny (minutes on a laptop), s, b (the paper's), l. Bytes by default; the paper's tokens are --config.data.reader.tokenizer=hf:gpt2
with --config.data.reader.length=1024. Without data.path it reads the pages of Python's help. Of data without validation records
one twentieth is kept for it (data.holdout).
"""

from configs.base import base, size_and_patch

SIZES = dict(tiny=(128, 4, 4), s=(384, 12, 6), b=(768, 12, 12), l=(1024, 24, 16))  # width, depth, heads


def get_config(variant: str = 'b'):
    size, _ = size_and_patch(variant, tuple(SIZES))
    c = base()
    c.data.path, c.data.batch_size, c.data.holdout = 'builtin:python_topics', 512, 0.05
    c.data.reader = dict(name='TextReader', length=1024, tokenizer='bytes', alphabet='', separator='', documents='pack')
    c.augment = dict(name='tokens')
    c.tokenizer = dict(name='ids', grid=None)
    c.mask = dict(name='absorbing', schedule='linear', power=1.0, by='time', steps=0, eps=1e-3, low_discrepancy=True)
    c.hide = dict(name='mask_token')
    width, depth, heads = SIZES[size]
    c.encoder = dict(
        name='Transformer',
        width=width,
        depth=depth,
        heads=heads,
        positions='rotary',
        drop_path=0.0,
        remat='none',
        scan=False,
    )
    c.condition = dict(level=False, num_classes=0, label_dropout=0.1)
    c.objective = dict(name='TokenDiffusion', weighting='bound', smoothing=0.0)
    c.total_steps, c.schedule.warmup_steps, c.schedule.lr, c.schedule.scale_lr_by = 1_000_000, 2500, 3e-4, 0
    c.optimizer.update(b2=0.999, weight_decay=0.0, clip=1.0)
    c.ema = 0.9999
    c.log_every, c.eval_every, c.checkpoint_every = 100, 10_000, 10_000
    sampler = dict(
        name='ancestral',
        steps=256,
        schedule='linear',
        power=1.0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        guidance=1.0,
        block=0,
    )
    c.evals = dict(
        likelihood=dict(name='likelihood', draws=8, batch_size=16),
        pseudo_likelihood=dict(name='pseudo_likelihood', rows=4),
        generation=dict(name='generation', rows=16, sampler=sampler),
    )
    c.evals_often, c.evals_last = ('likelihood', 'generation'), ()
    c.smaller = 'configs/mdlm.py:tiny'
    if size == 'tiny':
        tiny(c)
    return c


def tiny(c) -> None:
    """Minutes on two cores."""
    c.data.batch_size, c.data.reader.length = 32, 128
    c.total_steps, c.schedule.warmup_steps, c.schedule.lr, c.dtype = 1000, 100, 3e-3, 'float32'
    c.optimizer.b2, c.ema = 0.98, 0.99
    c.log_every, c.eval_every, c.checkpoint_every = 50, 1000, 500
    c.evals.generation.sampler.steps = 64
    c.smaller = ''
