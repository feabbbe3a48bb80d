"""The train state and the one train step of every objective."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from mim_jax import optim, sharding

KEPT_FEATURES = 256  # rows of pooled features a step hands out for the collapse monitor


@struct.dataclass
class TrainState:
    """All that a checkpoint holds besides the data position."""

    step: Array  # i32, steps taken, skipped ones included
    params: dict
    ema: dict | None  # exponential moving average of params
    stats: dict | None  # state that no gradient changes
    opt_state: Any


def row_keys(seed: int, step: Array, rows: int) -> Array:
    """key[rows]: one key per row of the global batch, a function of (seed, step, row) alone."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def init(seed: int, batch: dict, *, objective, augment: Callable, tx_of: Callable, ema: bool) -> TrainState:
    """A fresh state; `batch` gives shapes only (a few rows are enough)."""
    keys = row_keys(seed, jnp.zeros((), jnp.int32), batch['valid'].shape[0])
    variables = objective.init(jax.random.key(seed), augment(keys, batch, train=False), keys, train=False)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), variables['params'])
    stats = {k: v for k, v in variables.items() if k != 'params'} or None
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        jax.tree.map(jnp.copy, params) if ema else None,
        stats,
        tx_of(params).init(params),
    )


def make_loss(objective, augment: Callable) -> Callable:
    """`(params, batch, keys, teacher) -> (loss, aux)` of raw records: augmentation included.

    The teacher, parameters or None, is what targets of features are asked of.
    """

    def loss(params, batch, keys, teacher=None):
        drop_path, draw, crop = (jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys) for i in range(3))
        batch, taught = augment(crop, batch, train=True), {}
        if teacher is not None and getattr(objective, 'taught', False):
            taught = dict(
                teacher=partial(objective.apply, {'params': sharding.gather_tables(teacher)}, method='encode')
            )
        with nn.intercept_methods(sharding.keep_rows):
            return objective.apply(
                {'params': sharding.gather_tables(params)}, batch, draw, train=True, rngs={'drop_path': drop_path[0]}, **taught
            )  # fmt: skip

    return loss


def gradients(loss: Callable, params: dict, batch: dict, keys: Array, accumulate: int) -> tuple[Array, dict, dict]:
    """Mean loss, aux and gradients over `accumulate` micro-batches, one after the other.

    Micro-batch j takes rows j, j + accumulate, ...: every device keeps its own rows.
    """
    grad = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, aux), grads = grad(params, batch, keys)
        return value, aux, grads
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), (batch, keys))

    def add(total, part):
        (value, aux), grads = grad(params, *part)
        return jax.tree.map(jnp.add, total, (value, grads)), aux

    zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    (value, grads), aux = jax.lax.scan(add, zero, micro)
    aux = {k: v[-1] if k == 'features' else v.mean(0) for k, v in aux.items()}
    return value / accumulate, aux, jax.tree.map(lambda g: g / accumulate, grads)


def train_step(state: TrainState, batch: dict, lr_scale: Array, *, seed: int, loss: Callable, tx: optax.GradientTransformation,
               schedule: optax.Schedule, accumulate: int = 1, ema: optax.ScalarOrSchedule = 0.0) -> tuple[TrainState, dict]:  # fmt: skip
    """One optimiser step on one global batch, with `state.ema` as the teacher where one is asked; a non-finite loss or gradient changes nothing but the step count.

    Returns:
        state: the next one.
        metrics: f32 scalars 'loss', 'baseline', 'grad_norm', 'lr', 'examples', 'finite'; 'leaf_norms' f32[leaves], by
            which the first bad parameter is found; 'features' f32[<=256, D].
    """
    keys = row_keys(seed, state.step, batch['valid'].shape[0])
    value, aux, grads = gradients(partial(loss, teacher=state.ema), state.params, batch, keys, accumulate)
    leaf_norms = jnp.stack([jnp.sqrt(jnp.square(g.astype(jnp.float32)).sum()) for g in jax.tree.leaves(grads)])
    grad_norm = jnp.linalg.norm(leaf_norms)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    lr = schedule(state.step) * lr_scale

    def update():
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optim.apply(state.params, updates, lr)
        decay = ema(state.step) if callable(ema) else ema
        averaged = state.ema if state.ema is None else optax.incremental_update(params, state.ema, 1 - decay)
        return state.replace(params=params, ema=averaged, opt_state=opt_state)

    # a branch, not a select of every leaf, which on CPU can cost more than the gradients do
    new = jax.lax.cond(finite, update, lambda: state).replace(step=state.step + 1)
    aux['features'] = aux['features'][:KEPT_FEATURES]
    metrics = dict(
        loss=value, grad_norm=grad_norm, lr=lr, finite=finite, leaf_norms=leaf_norms, examples=batch['valid'].sum()
    )
    return new, metrics | aux
