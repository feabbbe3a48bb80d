"""Learning rate, weight decay and layer-wise decay, by rules over parameter paths."""

import re
from collections.abc import Callable

import jax
import optax
from jax import Array

__all__ = ['adamw', 'constant', 'schedule']  # what a config may name

# Ordered (path regex, weight decay multiplier); the first match counts.
DECAY_RULES = (
    (r'(bias|scale)$', 0.0),
    (r'(token|registers?|query|codebook)$', 0.0),
    (r'positions?(/|$)|pos_embed', 0.0),
    (r'^head/.+/', 0.0),  # a head that is a network of its own (MAR, arXiv 2406.11838)
    (r'.*', 1.0),
)
BLOCK = r'encoder/.*?block_(\d+)'


def path_str(path: tuple) -> str:
    """A parameter's path as 'encoder/block_0/attention/qkv/kernel'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def by_path(params, rule: Callable[[str], float]):
    """A tree like `params` holding `rule(path)` of every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, _: rule(path_str(path)), params)


def decay_rule(path: str) -> float:
    """Weight decay multiplier of a parameter: 0 for norms, biases, positions, tokens and MAR's small network."""
    return next(value for regex, value in DECAY_RULES if re.search(regex, path))


def layer_of(path: str, depth: int) -> int:
    """0 for the stem, i + 1 for encoder block i, depth + 1 for all that follows (BEiT, arXiv 2106.08254)."""
    if block := re.search(BLOCK, path):
        return int(block[1]) + 1
    return 0 if re.search(r'encoder/(?!norm)', path) else depth + 1


def depth_of(params) -> int:
    """Blocks of the encoder among the parameters."""
    found = (re.search(BLOCK, path_str(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return max((int(block[1]) + 1 for block in found if block), default=0)


def layer_rule(path: str, depth: int, decay: float) -> float:
    """Learning-rate multiplier `decay ** (depth + 1 - layer)`."""
    return decay ** (depth + 1 - layer_of(path, depth))


def schedule(*, lr: float, batch_size: int, total_steps: int, warmup_steps: int = 0, start_lr: float = 0.0, end_lr: float = 0.0,
             scale_lr_by: int = 256) -> optax.Schedule:  # fmt: skip
    """Linear warm-up from `start_lr` and cosine to `end_lr`; the peak is lr * batch_size / scale_lr_by (0: lr as it is), arXiv 1706.02677."""
    peak, warmup_steps = _peak(lr, batch_size, scale_lr_by), min(warmup_steps, max(total_steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        start_lr if warmup_steps else peak, peak, warmup_steps, max(total_steps, warmup_steps + 1), end_lr
    )


def constant(
    *, lr: float, batch_size: int, total_steps: int, warmup_steps: int = 0, scale_lr_by: int = 256
) -> optax.Schedule:
    """Linear warm-up from 0 to the peak of `schedule`, which stays."""
    peak, warmup_steps = _peak(lr, batch_size, scale_lr_by), min(warmup_steps, max(total_steps - 1, 0))
    return optax.warmup_constant_schedule(0.0 if warmup_steps else peak, peak, warmup_steps)


def _peak(lr: float, batch_size: int, scale_lr_by: int) -> float:
    return lr * batch_size / scale_lr_by if scale_lr_by else lr


def adamw(params, *, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.05, clip: float = 0.0,
          layer_decay: float = 1.0, depth: int = 0, end_weight_decay: float | None = None, total_steps: int = 0) -> optax.GradientTransformation:  # fmt: skip
    """AdamW (arXiv 1711.05101) without the learning rate: the step multiplies by it.

    Args:
        params: tree (or shapes) the path rules are applied to.
        clip: largest global gradient norm; 0 = off.
        layer_decay: learning-rate factor per layer below the head, 1 = off.
        depth: blocks of the encoder; 0 = those among `params`.
        end_weight_decay: to which weight decay goes by a cosine over `total_steps`; None = it stays.
        total_steps: see `end_weight_decay`.
    """
    if end_weight_decay is not None:
        start, gone = weight_decay, optax.cosine_decay_schedule(1.0, total_steps)
        weight_decay = lambda count: end_weight_decay + (start - end_weight_decay) * gone(count)  # noqa: E731
    decays = by_path(params, decay_rule)
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    parts += [optax.scale_by_adam(b1, b2, eps), optax.add_decayed_weights(weight_decay, jax.tree.map(bool, decays))]
    if layer_decay != 1.0:
        depth = depth or depth_of(params)
        scales = by_path(params, lambda path: layer_rule(path, depth, layer_decay))
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales)))
    return optax.chain(*parts)


def apply(params, updates, lr: Array):
    """params - lr * updates, in f32."""
    return jax.tree.map(lambda p, u: p - lr * u, params, updates)
