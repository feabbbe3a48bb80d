"""The autoregressive language model (GPT, arXiv 2005.14165) that masked diffusion is compared with: the same Transformer, data and steps.

    python -m mim_jax.main --config=configs/autoregressive.py:b --workdir=DIR --config.data.path=FOLDER_OR_FILE

Variants: those of mdlm.py.
"""

from configs.mdlm import get_config as mdlm


def get_config(variant: str = 'b'):
    c = mdlm(variant)
    del c.mask
    c.objective = dict(name='Sequence')
    del c.evals.pseudo_likelihood
    c.evals.generation.sampler = dict(name='first_hitting', block=1, temperature=1.0, top_k=0, top_p=1.0, guidance=1.0)
    c.smaller = c.smaller.replace('mdlm', 'autoregressive')
    return c
