"""MAE (arXiv 2111.06377) on CIFAR-10: the small recipe; `benchmarks/gains.py` cuts it to minutes and tells what comes out.

python -m mim_jax.main --config=configs/mae_cifar10.py --workdir=DIR --config.data.path=cifar10_train.parquet --config.data.val_path=cifar10_test.parquet
"""

from configs.base import vit
from configs.mae import get_config as mae


def get_config():
    c = mae('tiny')
    c.encoder = vit(width=128, depth=4, heads=4)
    c.terms.pixels.predictor.update(width=64, depth=1, heads=4)
    c.terms.pixels.target.norm = False
    c.data.update(batch_size=128, canvas=(32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
    c.augment.eval_crop = 1.0
    c.total_steps, c.schedule.warmup_steps, c.schedule.lr = 100_000, 1000, 3e-3
    c.log_every, c.eval_every, c.checkpoint_every = 100, 10_000, 1000
    for tune in (c.evals.finetune, c.evals.scratch):
        tune.update(epochs=50, batch_size=128, lr=4e-3, drop_path=0.0, mixup=0.0, cutmix=0.0, augment=dict(crop='pad'))
    c.evals.finetune.layer_decay, c.evals.linear_probe.epochs = 0.75, 20
    c.evals_last = ('linear_probe', 'finetune', 'scratch')
    return c
