"""The supervised stages of VideoMAE V2 (arXiv 2303.16727): ViT-g, 90.0% on Kinetics-400.

    python -m mim_jax.main --config=configs/videomae_v2_finetune.py:vit_g14_post --workdir=DIR --config.init=RUN --config.data.path=/data/k710

RUN is the workdir of the stage before; without it training starts from scratch. Variants: those of configs/videomae_v2.py for the
fine-tuning on a target, with _post after them for the post-pretraining on a labelled mixture, which the target may come from.
"""

from configs.videomae_v2 import get_config as videomae_v2

STAGES = dict(  # classes, records, epochs, batch, learning rate per 256 clips, warm-up epochs
    post=dict(classes=710, records=658_340, epochs=35, batch=256, lr=1e-3, warmup=5),
    target=dict(classes=400, records=240_436, epochs=3, batch=256, lr=1e-5, warmup=1),
)


def get_config(variant: str = 'vit_g14'):
    c = videomae_v2(variant.removesuffix('_post'))
    stage = STAGES['post' if variant.endswith('_post') else 'target']
    c.objective = dict(
        name='Classification', num_classes=stage['classes'], pool='mean', mixup=0.8, cutmix=1.0, smoothing=0.1
    )
    for slot in ('mask', 'hide', 'terms'):
        del c[slot]
    c.encoder.drop_path = 0.35
    c.optimizer.update(b2=0.999, weight_decay=0.1, layer_decay=0.9, clip=0.0)
    c.data.reader.clips = 2
    c.evals_often, c.evals_last = ('accuracy',), ()
    c.evals.accuracy = dict(name='accuracy', batch_size=15, clips=5, crops=3)
    if not c.encoder.size:
        c.encoder.drop_path, c.optimizer.layer_decay, c.objective.num_classes = 0.0, 0.75, 40
        c.evals.accuracy.update(batch_size=32, clips=1, crops=1)
        c.schedule.lr, c.total_steps = 1e-3, 500
        return c
    c.augment.update(c.evals.finetune.augment, flip=True)
    c.data.batch_size, each = stage['batch'], stage['records'] * c.data.reader.clips // stage['batch']
    c.schedule.lr, c.schedule.warmup_steps, c.total_steps = stage['lr'], stage['warmup'] * each, stage['epochs'] * each
    c.eval_every, c.checkpoint_every = each, each // 4
    return c
