"""MAE (arXiv 2111.06377) on CIFAR-10: the small recipe, ViT-Tiny with patches of 4.

    python -m mim_jax.main --config=configs/mae_cifar10.py --workdir=DIR --config.data.path=cifar10_train.parquet --config.data.val_path=cifar10_test.parquet
"""

from configs.mae import get_config as mae


def get_config():
    c = mae('tiny')
    c.encoder = dict(name='ViT', width=192, depth=6, heads=3, class_token=True)
    c.data.update(batch_size=512, canvas=(32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
    c.augment.eval_crop = 1.0
    c.total_steps, c.schedule.warmup_steps, c.schedule.lr = 20_000, 1000, 5e-4
    c.log_every, c.eval_every, c.checkpoint_every = 50, 5000, 1000
    return c
