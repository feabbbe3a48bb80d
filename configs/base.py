"""The keys every config has. A method's file starts from `base()` and names its parts."""

import difflib

from ml_collections import ConfigDict

VARIANTS = ('tiny', 's', 'b', 'l', 'h')
PATCHES = dict(tiny=4, h=14)  # where they are not 16


def size_and_patch(variant: str, variants=VARIANTS, patches=PATCHES) -> tuple[str, int]:
    """('l', 16) of 'l' or 'vit_l16'."""
    name = variant.removeprefix('vit_')
    size = name.rstrip('0123456789')
    if size not in variants:
        close = difflib.get_close_matches(size, variants, 1, 0.3)
        raise ValueError(
            f'no variant {variant!r}: use one of {", ".join(variants)}, or vit_SIZEPATCH as vit_l16'
            + (f'; did you mean {close[0]!r}?' if close else '')
        )
    given = name.removeprefix(size)
    return size, int(given) if given else patches.get(size, 16)


def vit(size: str | None = None, **options) -> dict:
    """The spec of a ViT encoder; width, depth and heads of 0 are those of the size."""
    shape = dict(width=0, depth=0, heads=0, class_token=True, registers=0)
    return (
        dict(name='ViT', size=size or '', positions='sincos', drop_path=0.0, remat='none', scan=False) | shape | options
    )


def base() -> ConfigDict:
    """Everything but the method."""
    c = ConfigDict()
    c.seed = 0
    c.total_steps = 1000
    c.log_every = 50
    c.eval_every = 1000
    c.checkpoint_every = 1000
    c.keep_checkpoints = 3
    c.dtype = 'bfloat16'  # of the computation; softmax, norms, loss and optimiser state are float32
    c.init = ''  # workdir of a run that this one starts from
    c.init_part = 'encoder'  # what it takes from there, or 'all' of the network
    c.smaller = ''  # a config to name where this one would take days
    c.ema = 0.0  # decay of the moving average of the parameters; 0 = none
    c.end_ema = 0.0  # what its decay grows to, step by step; 0 = it stays
    c.micro_batch = 0  # rows a device computes at once; 0 = as many as fit
    c.max_bad_steps = 5  # non-finite steps in a row before the run rolls back
    c.mesh = dict(data=-1, fsdp=1, model=1)
    c.tensorboard = True
    c.wandb = ''  # Weights & Biases project; '' = off
    c.data = dict(
        path='builtin:digits',  # a folder, glob, list file, .parquet, .npz, packed shards, tfds:NAME, hf:NAME, builtin:NAME
        val_path='',  # '' = the test split of a builtin, or PATH/val or PATH/test
        holdout=0.0,  # share of the records kept for validation where there is no other
        labels='auto',  # 'none', or the name of a column
        batch_size=256,
        cpu_batch_size=0,  # of a run on a CPU, unless the command line says batch_size; 0 = the same
        reader=dict(name='ImageReader'),
        eval_reader=dict(),  # options of the reader, where evaluations want others
        image_size=(224, 224),
        canvas=(224, 224),  # larger records are reduced to fit before they go to the device
        channels=3,
        dtype='uint8',
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        workers=0,  # decoding processes; 0 = threads of the trainer, for videos as many processes as cores
        min_side=2,
        max_bad_share=0.5,
    )
    c.augment = dict(
        name='image', crop='random_resized', scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), pad=4, flip=True, eval_crop=0.875
    )
    c.optimizer = dict(name='adamw', b1=0.9, b2=0.95, weight_decay=0.05, clip=0.0, layer_decay=1.0)
    c.schedule = dict(name='schedule', lr=1.5e-4, warmup_steps=0, end_lr=0.0, scale_lr_by=256)
    tune = dict(
        name='finetune', epochs=100, steps=0, batch_size=1024, lr=5e-4, drop_path=0.1, mixup=0.8, cutmix=1.0, seed=0
    )
    c.evals = dict(  # how each evaluation is done; the two keys below say which are
        reconstruction=dict(name='reconstruction', rows=8),
        knn=dict(name='knn', k=20, temperature=0.07, pool='mean'),
        linear_probe=dict(name='linear_probe', pool='mean', epochs=90, seed=0),
        attentive_probe=dict(name='attentive_probe', epochs=20),
        few_shot=dict(name='few_shot', pool='mean'),
        finetune=dict(tune, layer_decay=0.65, scratch=False),
        scratch=dict(tune, layer_decay=1.0, scratch=True),
    )
    c.evals_often = ('reconstruction', 'knn')  # at the start, every eval_every steps and at the end
    c.evals_last = ('linear_probe',)  # at the end
    return c
