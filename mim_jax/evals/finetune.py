"""Fine-tuning the whole encoder, its last blocks, or a fresh one, for classification."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import optax

from mim_jax import build, optim, sharding, step
from mim_jax.errors import InputError
from mim_jax.evals.confusion import confusion
from mim_jax.evals.data import LabelledData
from mim_jax.evals.features import put
from mim_jax.evals.views import answers, one_pass_of
from mim_jax.models.heads import POOLS
from mim_jax.objectives import Classification

MAE_AUGMENT = dict(scale=(0.08, 1.0), randaugment={}, erase=0.25)


def layer_table(params: dict, depth: int, decay: float, tuned: int) -> list[tuple[int, float, int]]:
    """(layer, learning-rate factor, parameters) of each layer: 0 the stem, depth + 1 the head; factor 0 = frozen."""
    count = [0] * (depth + 2)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        count[optim.layer_of(optim.path_str(path), depth)] += leaf.size
    return [(i, decay ** (depth + 1 - i) * (i > depth - tuned), n) for i, n in enumerate(count)]


def freeze(params: dict, depth: int, tuned: int) -> dict:
    """Like `params`: False where a parameter lies in the last `tuned` of `depth` blocks or behind them."""
    return optim.by_path(params, lambda path: optim.layer_of(path, depth) <= depth - tuned)


def make_tx(params: dict, depth: int, tuned: int, **options) -> optax.GradientTransformation:
    """AdamW with layer-wise decay that leaves frozen parameters, weight decay included."""
    frozen = freeze(params, depth, tuned)
    still = optax.stateless(lambda updates, _: jax.tree.map(lambda u, stop: 0 * u if stop else u, updates, frozen))
    return optax.chain(optim.adamw(params, depth=depth, **options), still)


def make_loss(task: Classification, augment: Callable, depth: int, tuned: int) -> Callable:
    """`step.make_loss` that stops gradients at the first tuned block."""
    loss = step.make_loss(task, augment)

    def stopped(params, batch, keys, teacher=None):
        frozen = freeze(params, depth, tuned)
        params = jax.tree.map(lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, frozen)
        return loss(params, batch, keys, teacher)

    return stopped


def start(encoder: dict | None, batch: dict, **parts) -> step.TrainState:
    """`step.init` with the encoder's parameters where given, laid out over the mesh where there is one."""

    def init(encoder, batch):
        state = step.init(batch=batch, **parts)
        classifier = state.params['classifier']
        if encoder is not None:  # a copy: the train step gives its buffers away
            classifier = classifier | dict(
                encoder={k: jax.tree.map(jnp.copy, encoder[k]) for k in classifier['encoder']}
            )
        params = dict(classifier=classifier)
        return state.replace(params=params, ema=None if state.ema is None else jax.tree.map(jnp.copy, params))

    mesh = jax.sharding.get_mesh()
    placed = None if mesh.empty else sharding.shardings(jax.eval_shape(init, encoder, batch), mesh)
    return jax.jit(init, out_shardings=placed)(encoder, batch)


def training_batches(data: LabelledData, batch_size: int, steps: int, seed: int, reader: Mapping) -> Iterator[dict]:
    """`steps` device batches: pass after pass in new orders, the short batch at the end of a pass left out."""
    each = max(data.num_train * reader.get('clips', 1) // batch_size, 1)
    passes = (data.train(batch_size, seed=seed + epoch, steps=each, reader=reader) for epoch in itertools.count())
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
    metric: str = '',
    reader: Mapping = {},
    clips: int = 1,
    crops: int = 1,
    seed: int = 0,
) -> Callable:
    """`params -> {'eval/finetune_top1', 'eval/finetune_loss', 'finetune_confusion': uint8[H, W, 3]}`; the defaults are MAE's for ViT-B (arXiv 2111.06377).

    Args:
        objective: has `encoder`, whose parameters are params['encoder'], and `tokenizer`.
        data: labelled batches and the augmentation of the config.
        epochs: of the training set; `steps`, where not 0, counts instead.
        steps: see `epochs`.
        batch_size: of one step.
        accumulate: micro-batches of a step.
        lr: per 256 images of a batch; cosine to 1e-6.
        warmup: share of all steps.
        weight_decay: decoupled; none on norms, biases, positions and tokens.
        layer_decay: factor per layer below the head (arXiv 2106.08254); None is 0.65, and 1 from scratch.
        drop_path: of the last block, growing linearly to it.
        mixup: alpha of mixup; 0 = off.
        cutmix: alpha of CutMix; 0 = off.
        smoothing: of the labels.
        augment: options of the augmentation, over those of the config.
        pool: 'mean' of the patch tokens or 'cls', the class token.
        tuned_blocks: only the last so many blocks and the head learn; None = everything.
        ema: decay of the average of the parameters that is evaluated in their place; 0 = off.
        scratch: start from random parameters whatever is given; the names are then 'eval/scratch_...'.
        metric: name of the metrics, 'eval/METRIC_top1'; '' = finetune or scratch.
        reader: options of the reader, over those of the config: sampling, frames, `clips` for repeated augmentation (arXiv 1901.09335).
        clips: of each validation video, spread over it; their logits are averaged.
        crops: of each clip, likewise.
        seed: of the head, the order and the augmentation.

    Raises:
        InputError: unknown pool, no class token, more tuned blocks than there are, a batch that does not divide, or
            no labelled row.
    """
    encoder = objective.encoder.clone(drop_path=drop_path, parent=None)
    depth = encoder.shape[1]
    check(encoder, pool, tuned_blocks, batch_size, accumulate)
    tuned = depth + 1 if tuned_blocks is None else tuned_blocks
    decay = layer_decay if layer_decay is not None else 1.0 if scratch else 0.65
    mix = dict(mixup=mixup, cutmix=cutmix, smoothing=smoothing)
    task = build.classifier(objective.tokenizer, encoder, data.num_classes, pool, **mix)
    tx_of = partial(make_tx, depth=depth, tuned=tuned, b2=0.999, weight_decay=weight_decay, layer_decay=decay)
    total = steps or epochs * max(data.num_train * reader.get('clips', 1) // batch_size, 1)
    schedule = optim.schedule(
        lr=lr, batch_size=batch_size, total_steps=total, warmup_steps=round(warmup * total), end_lr=1e-6
    )
    name = metric or ('scratch' if scratch else 'finetune')
    view = one_pass_of(reader, clips)
    learn = partial(learned, task, data, tx_of=tx_of, schedule=schedule, depth=depth, tuned=tuned, total=total, augment=augment,
                    batch_size=batch_size, accumulate=accumulate, reader=reader, view=view, decay=decay, ema=ema, seed=seed,
                    name=name)  # fmt: skip

    def evaluate(params: dict) -> dict:
        tuned_params = learn(None if scratch else params['encoder'])
        found = answers(tuned_params, data.val(batch_size, view), batch_size, task, data.augment, clips, crops)
        picture = confusion(found.confusion, data.class_names)
        return {f'eval/{name}_top1': found.top1, f'eval/{name}_loss': found.loss, f'{name}_confusion': picture}

    return evaluate


def learned(
    task: Classification,
    data: LabelledData,
    given: dict | None,
    *,
    tx_of: Callable,
    schedule: optax.Schedule,
    depth: int,
    total: int,
    batch_size: int,
    tuned: int | None = None,
    augment: Mapping = {},
    accumulate: int = 1,
    reader: Mapping = {},
    view: Mapping = {},
    decay: float = 1.0,
    ema: float = 0.0,
    seed: int = 0,
    name: str = 'classifier',
) -> dict:
    """Parameters of a classifier after `total` steps from the encoder `given`, or from random ones. Options as of `finetune`."""
    tuned = depth + 1 if tuned is None else tuned
    first = put(next(iter(data.val(batch_size, view))), batch_size)
    state = start(given, first, seed=seed, objective=task, augment=data.augment, tx_of=tx_of, ema=bool(ema))
    for layer, scale, count in layer_table(state.params, depth, decay, tuned):
        logging.info('%s: layer %d of %d, learning rate x %.4g, %d parameters', name, layer, depth + 1, scale, count)
    loss = make_loss(task, partial(data.augment, **augment), depth, tuned)
    options = dict(seed=seed, loss=loss, tx=tx_of(state.params), schedule=schedule, accumulate=accumulate, ema=ema)
    train = jax.jit(partial(step.train_step, **options), donate_argnums=0)
    for i, batch in enumerate(training_batches(data, batch_size, total, seed, reader), 1):
        state, metrics = train(state, batch, jnp.float32(1))
        if i % max(total // 10, 1) == 0:
            data.say(f'{name}: step {i} of {total}, loss {metrics["loss"]:.4f}')
    return state.ema if ema else state.params


def check(encoder, pool: str, tuned_blocks: int | None, batch_size: int, accumulate: int) -> None:
    if pool not in POOLS:
        raise InputError(f'evaluation pool {pool!r} is not one of {", ".join(POOLS)}')
    if pool == 'cls' and not encoder.class_token:
        raise InputError("evaluation pool 'cls' needs an encoder with a class token; use pool='mean'")
    if tuned_blocks is not None and not 0 <= tuned_blocks <= encoder.shape[1]:
        raise InputError(
            f'tuned_blocks={tuned_blocks} but the encoder has {encoder.shape[1]} blocks: use 0 to that many'
        )
    if batch_size % accumulate:
        raise InputError(f'fine-tuning batch_size={batch_size} does not divide into accumulate={accumulate} parts')
