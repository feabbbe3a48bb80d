"""What blocks compute, as pure functions: norms and softmax in f32 under any compute dtype.

`layer_norm` and `gelu` carry backward passes that keep only their input; `layer_norm_reference`, `gelu_reference` and `attend_reference`
are the plain forms they are tested against.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.models import fused_attention
from mim_jax.sharding import on_each_device

LONG = 512  # keys from which TPUs are faster with `_attend_long`


def sum_rows(x):
    """x[..., D] -> [D]. On CPU as a product with ones, which takes a tenth of the time of XLA's sum."""

    def product(x):
        rows = x.reshape(-1, x.shape[-1])
        return jnp.ones_like(rows[:, 0]) @ rows

    return lax.platform_dependent(x, cpu=product, default=lambda x: x.sum(tuple(range(x.ndim - 1))))


def sum_columns(x):
    """x[..., D] -> [..., 1], as `sum_rows`."""
    return lax.platform_dependent(
        x,
        cpu=lambda x: (x @ jnp.ones_like(x, shape=x.shape[-1:]))[..., None],
        default=lambda x: x.sum(-1, keepdims=True),
    )


def layer_norm_reference(x, scale, bias, eps):
    """LayerNorm over the last axis with f32 statistics (arXiv 1607.06450). -> x.dtype[..., D]."""
    centred = x.astype(jnp.float32) - jnp.mean(x, -1, keepdims=True, dtype=jnp.float32)
    inv = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps)
    return (centred * inv * scale + bias).astype(x.dtype)


layer_norm = jax.custom_vjp(layer_norm_reference, nondiff_argnums=(3,))


def _layer_norm_forward(x, scale, bias, eps):
    centred, inv = _standardise(x, eps)
    return (centred * inv * scale + bias).astype(x.dtype), (x, scale)


def _standardise(x, eps):
    """f32 (x - mean, 1 / standard deviation) over the last axis."""
    wide = x.astype(jnp.float32)
    centred = wide - sum_columns(wide) / x.shape[-1]
    return centred, lax.rsqrt(sum_columns(centred * centred) / x.shape[-1] + eps)


def _layer_norm_backward(eps, residuals, g):
    x, scale = residuals
    g = g.astype(jnp.float32)
    centred, inv = _standardise(x, eps)
    y, dy = centred * inv, g * scale
    dx = inv * (dy - sum_columns(dy) / x.shape[-1] - y * (sum_columns(dy * y) / x.shape[-1]))
    return dx.astype(x.dtype), sum_rows(g * y), sum_rows(g)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _normal_cdf(x):
    return 0.5 * (1 + lax.erf(x * 0.5**0.5))


def gelu_reference(x):
    """Exact (erf) GELU, computed in f32 (arXiv 1606.08415)."""
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


gelu = jax.custom_vjp(gelu_reference)


def _gelu_backward(x, g):
    wide = x.astype(jnp.float32)
    slope = _normal_cdf(wide) + wide * jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return ((g.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu_reference(x), x), _gelu_backward)


def attend_reference(q, k, v, valid=None):
    """Scaled dot-product attention, softmax in f32 (arXiv 1706.03762).

    q[B, Q, H, C], k and v[B, K, H, C]; valid bool[B, K], or bool[B, Q, K] where queries see different keys, or None (all).
    Returns q.dtype[B, Q, H, C]; invalid keys get exactly zero weight, and a query without any valid key returns zeros.
    """
    scores = jnp.einsum('bqhc,bkhc->bhqk', q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    if valid is not None:
        valid = beside_scores(valid, 3)
        scores = jnp.where(valid, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if valid is not None:
        weights = jnp.where(valid, weights, 0)
    return jnp.einsum('bhqk,bkhc->bqhc', weights.astype(v.dtype), v)


def beside_scores(valid, keys):
    """bool[B, K] or bool[B, Q, K] as it broadcasts over scores whose last two axes are queries and keys; `keys` = 3 or 2, the keys' axis."""
    if valid.ndim == 2:
        return jnp.expand_dims(valid, (1, 5 - keys))
    return (valid if keys == 3 else valid.swapaxes(1, 2))[:, None]


def attend(q, k, v, valid=None):
    """`attend_reference` with backward passes written by hand, in the form and layout each platform is fast with."""
    q = q * q.shape[-1] ** -0.5
    cpu, default = (partial(_heads_first, form) for form in (_attend_long, _attend))
    return lax.platform_dependent(q, k, v, valid, tpu=_tokens_first, cpu=cpu, default=default)


def _tokens_first(q, k, v, valid):
    fused, heads = on_each_device(partial(fused_attention.attend, channels=q.shape[-1]), q.shape[0], q.shape[2])
    if fused_attention.suits(q, k, valid, heads):
        flat = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
        told = None if valid is None else (valid if valid.ndim == 3 else valid[:, None]).astype(jnp.int8)
        return fused(*flat, told).reshape(q.shape)
    form = _attend_long if k.shape[1] >= LONG else _attend
    return form(q, k, v, valid, 'bqhc,bkhc->bhkq', 'bhkq,bkhc->bqhc')


def _heads_first(form, q, k, v, valid):
    q, k, v = (t.swapaxes(1, 2) for t in (q, k, v))
    return form(q, k, v, valid, 'bhqc,bhkc->bhqk', 'bhqk,bhkc->bhqc').swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, valid, to_scores, to_out):
    return _attend_forward(q, k, v, valid, to_scores, to_out)[0]


def _attend_forward(q, k, v, valid, to_scores, to_out):
    scores = jnp.einsum(to_scores, q, k)
    keys = _keys_axis(to_scores)
    wide = scores.astype(jnp.float32)
    if valid is not None:
        wide = jnp.where(beside_scores(valid, keys), wide, jnp.finfo(jnp.float32).min)
    total = jax.nn.logsumexp(wide, axis=keys, keepdims=True)
    out = jnp.einsum(to_out, _attention_weights(scores, total, valid, keys).astype(v.dtype), v)
    return out, (q, k, v, valid, scores, total, out)


def _attend_backward(to_scores, to_out, residuals, g):
    q, k, v, valid, scores, total, out = residuals
    keys = _keys_axis(to_scores)
    weights = _attention_weights(scores, total, valid, keys)
    dweights, dv = jax.vjp(partial(jnp.einsum, to_out), weights.astype(v.dtype), v)[1](g)
    mean = jnp.einsum(to_out[-4:] + '->bhq', g.astype(jnp.float32) * out)  # of dweights under weights
    dscores = (weights * (dweights - jnp.expand_dims(mean, keys))).astype(q.dtype)
    dq, dk = jax.vjp(partial(jnp.einsum, to_scores), q, k)[1](dscores)
    return dq, dk, dv, None


def _keys_axis(to_scores):
    return to_scores[-4:].index('k')


def _attention_weights(scores, total, valid, keys):
    """f32 softmax over axis `keys` from scores and their log-sum-exp; zero where invalid."""
    weights = jnp.exp(scores.astype(jnp.float32) - total)
    return weights if valid is None else jnp.where(beside_scores(valid, keys), weights, 0)


_attend.defvjp(_attend_forward, _attend_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend_long(q, k, v, valid, to_scores, to_out):
    """`_attend` for many keys: what is done to each weight costs more there than what is done to each output.

    Weights stay undivided; their sum comes out of the product with the values, as one more column, and divides the output
    and, in the backward pass, its gradient.
    """
    return _attend_long_forward(q, k, v, valid, to_scores, to_out)[0]


def _attend_long_forward(q, k, v, valid, to_scores, to_out):
    scores = jnp.einsum(to_scores, q, k).astype(jnp.float32)
    keys = _keys_axis(to_scores)
    if valid is not None:
        valid = beside_scores(valid, keys)
        scores = jnp.where(valid, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - scores.max(keys, keepdims=True))
    weights = (weights if valid is None else jnp.where(valid, weights, 0)).astype(v.dtype)
    ones = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
    out = jnp.einsum(to_out, weights, ones, preferred_element_type=jnp.float32)
    total = jnp.maximum(out[..., -1:], 1)  # the largest weight is 1, but in rows without a valid key
    out = (out[..., :-1] / total).astype(v.dtype)
    return out, (q, k, v, weights, total, out)


def _attend_long_backward(to_scores, to_out, residuals, g):
    q, k, v, weights, total, out = residuals
    g = g.astype(jnp.float32) / total
    mean = jnp.expand_dims(jnp.einsum(to_out[-4:] + '->bhq', g * out), _keys_axis(to_scores))
    dweights, dv = jax.vjp(partial(jnp.einsum, to_out), weights, v)[1](g.astype(v.dtype))
    dscores = (weights * (dweights.astype(jnp.float32) - mean)).astype(q.dtype)
    dq, dk = jax.vjp(partial(jnp.einsum, to_scores), q, k)[1](dscores)
    return dq, dk, dv, None


_attend_long.defvjp(_attend_long_forward, _attend_long_backward)


@jax.custom_vjp
def add_bias(x, bias):
    """x[..., D] + bias[D], with the gradient of the bias by `sum_rows`."""
    return x + bias


add_bias.defvjp(lambda x, bias: (x + bias, None), lambda _, g: (g, sum_rows(g)))


def project(x, kernel):
    """x[..., D] @ kernel[D, E]. On CPU with one axis of rows: of several, XLA copies the transpose for the gradient of the kernel."""

    def flat(x, kernel):
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)

    return lax.platform_dependent(x, kernel, cpu=flat, default=jnp.matmul)


def project_stacked(x, kernel):
    return list(jnp.einsum('bnd,kde->kbne', x, kernel))


def project_each(x, kernel):
    return [project(x, k) for k in kernel]


def rotary(pos, channels):
    """(sin, cos) f32[B, N, 1, C'] of angles that grow with pos f32[B, N, P], for `rotate` of C = `channels` (arXiv 2104.09864).

    Axes share the channels: each turns pairs of the same count of them, C' = P (C // 2 P) pairs in all.
    """
    count = channels // (2 * pos.shape[-1])
    omega = 10000.0 ** -(jnp.arange(count, dtype=jnp.float32) / count)
    angle = (pos[..., None] * omega).reshape(*pos.shape[:2], 1, -1)
    table = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
    # XLA for CPU would compute sines again for each head of each block; it keeps what comes out of a product.
    table = lax.platform_dependent(table, cpu=lambda x: x @ jnp.eye(x.shape[-1]), default=lambda x: x)
    return jnp.split(table, 2, -1)


def rotate(x, turn):
    """x[B, N, H, C] with the pairs of channels (i, i + C') turned by (sin, cos) of `rotary`; what is left of C stays."""
    (sin, cos), half = turn, turn[0].shape[-1]
    a, b, rest = jnp.split(x, [half, 2 * half], -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], -1).astype(x.dtype)
