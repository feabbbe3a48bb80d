"""Fine-tuning the whole encoder, its last blocks, or a fresh one, for classification."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mim_jax import optim, sharding, step
from mim_jax.augment.mix import mixup_cutmix, soft_labels
from mim_jax.errors import InputError
from mim_jax.evals.data import LabelledData
from mim_jax.evals.features import put
from mim_jax.models.heads import POOLS, Classifier

MAE_AUGMENT = dict(scale=(0.08, 1.0), randaugment={}, erase=0.25)


def layer_table(params: dict, depth: int, decay: float, tuned: int) -> list[tuple[int, float, int]]:
    """(layer, learning-rate factor, parameters) of each layer: 0 the stem, depth + 1 the head; factor 0 = frozen."""
    count = [0] * (depth + 2)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        count[optim.layer_of(optim.path_str(path), depth)] += leaf.size
    return [(i, decay ** (depth + 1 - i) if i > depth - tuned else 0.0, n) for i, n in enumerate(count)]


def make_loss(forward: Callable, augment: Callable, mix: Callable, frozen: dict) -> Callable:
    """`(params, batch, keys) -> (loss, aux)` of raw records, as `step.train_step` wants it."""

    def loss(params, batch, keys):
        view, mixing, drop = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in range(3))
        counts = (batch['valid'] & (batch['label'] >= 0)).astype(jnp.float32)
        batch = augment(view, batch, train=True)
        image, target = mix(mixing[0], batch['image'], batch['label'])
        params = jax.tree.map(lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, frozen)
        logits, features = forward(params, batch | dict(image=image), train=True, rngs=dict(drop_path=drop[0]))
        share = counts / jnp.maximum(counts.sum(), 1)
        value = (optax.softmax_cross_entropy(logits, target) * share).sum()
        return value, dict(features=jax.lax.stop_gradient(features))

    return loss


def make_start(classifier: nn.Module, tokens: Callable, tx_of: Callable, *, scratch: bool, ema: bool, seed: int) -> Callable:
    """`(pretrained encoder parameters, batch) -> TrainState`, laid out over the mesh if there is one."""

    def init(encoder, batch):
        params = classifier.init(jax.random.key(seed), *tokens(batch))['params']
        if not scratch:
            params['encoder'] = {name: encoder[name] for name in params['encoder']}
        copy = jax.tree.map(jnp.copy, params) if ema else None
        return step.TrainState(jnp.zeros((), jnp.int32), params, copy, None, tx_of(params).init(params))

    def start(encoder, batch):
        mesh = jax.sharding.get_mesh()
        placed = None if mesh.empty else sharding.shardings(jax.eval_shape(init, encoder, batch), mesh)
        return jax.jit(init, out_shardings=placed)(encoder, batch)

    return start


def epochs_of(data: LabelledData, batch_size: int, steps: int, seed: int) -> Iterator[dict]:
    """`steps` device batches: pass after pass in new orders, the short batch at the end of a pass left out."""
    each = max(data.num_train // batch_size, 1)
    passes = (data.train(batch_size, seed=seed + epoch, steps=each) for epoch in itertools.count())
    return (put(batch, batch_size) for batch in itertools.islice(itertools.chain.from_iterable(passes), steps))


def finetune(
    objective,
    data: LabelledData,
    *,
    epochs: int = 100,
    steps: int = 0,
    batch_size: int = 1024,
    accumulate: int = 1,
    lr: float = 5e-4,
    warmup: float = 0.05,
    weight_decay: float = 0.05,
    layer_decay: float | None = None,
    drop_path: float = 0.1,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    smoothing: float = 0.1,
    augment: Mapping = MAE_AUGMENT,
    pool: str = 'mean',
    tuned_blocks: int | None = None,
    ema: float = 0.0,
    scratch: bool = False,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/finetune_top1', 'eval/finetune_loss'}`; the defaults are MAE's for ViT-B (arXiv 2111.06377).

    Args:
        objective: has `encoder`, whose parameters are params['encoder'], and `tokenizer`.
        data: labelled batches and the augmentation of the config.
        epochs: of the training set; `steps`, where not 0, counts instead.
        batch_size: of one step, in `accumulate` micro-batches.
        lr: per 256 images of a batch; cosine to 1e-6 after the share `warmup` of all steps.
        layer_decay: factor per layer below the head (arXiv 2106.08254); None is 0.65, and 1 from scratch.
        drop_path: of the last block.
        mixup: alpha of mixup, cutmix: of CutMix, smoothing: of the labels; 0 = off.
        augment: options of the augmentation over those of the config.
        pool: 'mean' of the patch tokens or 'cls', the class token.
        tuned_blocks: only the last so many blocks and the head learn; None = everything.
        ema: decay of an average of the parameters that is evaluated in their place; 0 = off.
        scratch: start from random parameters whatever is given; the names are then 'eval/scratch_...'.
        seed: of the head, the order, the augmentation.

    Raises:
        InputError: unknown pool, no class token, more tuned blocks than there are, or a batch that does not divide.
    """
    encoder = objective.encoder.clone(drop_path=drop_path, parent=None)
    depth, decay = encoder.shape[1], layer_decay or (1.0 if scratch else 0.65)
    tuned = depth + 1 if tuned_blocks is None else tuned_blocks
    check(encoder, pool, tuned_blocks, batch_size, accumulate)
    classifier = Classifier(encoder, data.num_classes, pool)
    total = steps or epochs * max(data.num_train // batch_size, 1)
    schedule = optim.schedule(
        lr=lr, batch_size=batch_size, total_steps=total, warmup_steps=round(warmup * total), end_lr=1e-6
    )

    def tokens(batch):
        t = objective.tokenizer(batch)
        return t.raw, t.pos, t.valid

    def forward(params, batch, **options):
        return classifier.apply({'params': params}, *tokens(batch), **options)

    def view(batch):
        return data.augment(jax.random.key(0), batch, train=False)

    @jax.jit
    def measure(params: dict, batch: dict) -> Array:
        """f32[3]: sums of hits and of cross-entropy, and the number of labelled rows."""
        counts = (batch['valid'] & (batch['label'] >= 0)).astype(jnp.float32)
        logits, _ = forward(params, view(batch))
        nats = optax.softmax_cross_entropy(logits, soft_labels(batch['label'], data.num_classes))
        return jnp.stack([(logits.argmax(-1) == batch['label']) @ counts, nats @ counts, counts.sum()])

    def scales(params):
        return optim.by_path(params, lambda path: float(optim.layer_of(path, depth) > depth - tuned))

    def tx_of(params):
        mask = scales(params)
        tx = optim.adamw(params, b2=0.999, weight_decay=weight_decay, layer_decay=decay, depth=depth)
        return optax.chain(tx, optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, mask)))

    start = make_start(
        classifier, lambda batch: tokens(view(batch)), tx_of, scratch=scratch, ema=bool(ema), seed=seed
    )
    mix = partial(mixup_cutmix, num_classes=data.num_classes, mixup=mixup, cutmix=cutmix, smoothing=smoothing)
    name = 'scratch' if scratch else 'finetune'

    def evaluate(params: dict) -> dict[str, float]:
        state = start(params['encoder'], put(next(iter(data.val(batch_size))), batch_size))
        ...

    return evaluate


def check(encoder, pool: str, tuned_blocks: int | None, batch_size: int, accumulate: int) -> None:
    if pool not in POOLS:
        raise InputError(f'finetune.pool {pool!r} is not one of {", ".join(POOLS)}')
