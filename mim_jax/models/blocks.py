"""Transformer blocks: pre-norm attention and MLP, with f32 norms and softmax under any compute dtype.

`layer_norm` and `gelu` carry backward passes that keep only their input; `layer_norm_reference` and `gelu_reference`
are the plain forms they are tested against.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.errors import InputError

Array = jax.Array
xavier = nn.initializers.xavier_uniform()

LONG = 512  # keys from which TPUs are faster with `_attend_long`
REMAT = {'full': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


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
    return lax.platform_dependent(q, k, v, valid, tpu=_tokens_first, default=_heads_first)


def _tokens_first(q, k, v, valid):
    form = _attend_long if k.shape[1] >= LONG else _attend
    return form(q, k, v, valid, 'bqhc,bkhc->bhkq', 'bhkq,bkhc->bqhc')


def _heads_first(q, k, v, valid):
    q, k, v = (t.swapaxes(1, 2) for t in (q, k, v))
    return _attend_long(q, k, v, valid, 'bhqc,bhkc->bhqk', 'bhqk,bhkc->bhqc').swapaxes(1, 2)


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


def drop_path(key, rates, batch):
    """Stochastic depth (arXiv 1603.09382): multipliers f32[depth, 2, B] of both branches of every block, per row."""
    keep = 1 - rates[:, None, None]
    return jax.random.bernoulli(key, keep, (len(rates), 2, batch)) / keep


class LayerNorm(nn.Module):
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps)


def project(x, kernel):
    """x[..., D] @ kernel[D, E]. On CPU with one axis of rows: of several, XLA copies the transpose for the gradient of the kernel."""

    def flat(x, kernel):
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)

    return lax.platform_dependent(x, kernel, cpu=flat, default=jnp.matmul)


class Dense(nn.Dense):
    """`nn.Dense` of `project` and `add_bias`."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features))
        bias = self.param('bias', self.bias_init, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return add_bias(project(x, kernel), bias)


class StackedDense(nn.Module):
    """`count` projections of one input from one kernel [count, D, E], so that no product is cut on its last axis.

    Only those listed in `biased` have a bias: softmax does not see one on the keys, whose gradient would be rounding
    noise that Adam scales up to full steps.
    """

    count: int
    features: int
    biased: tuple[int, ...]
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x):  # [B, N, D] -> [count, B, N, E]
        fused_xavier = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=1, out_axis=(0, 2))
        kernel = self.param('kernel', fused_xavier, (self.count, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (len(self.biased), self.features))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        outs = lax.platform_dependent(x, kernel, cpu=_project_each, default=_project_stacked)
        for i, b in zip(self.biased, bias, strict=True):
            outs[i] = add_bias(outs[i], b)
        return outs


def _project_stacked(x, kernel):
    return list(jnp.einsum('bnd,kde->kbne', x, kernel))


def _project_each(x, kernel):
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


class Attention(nn.Module):
    """Multi-head attention of x over itself, or over `context` where given (arXiv 1706.03762).

    x[B, Q, D], context[B, K, E] or None, valid bool[B, K] or bool[B, Q, K] or None, turn of `rotary` or None -> [B, Q, D].
    """

    heads: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x, context=None, valid=None, turn=None):
        width = x.shape[-1]
        if width % self.heads:
            raise InputError(f'width {width} is not a multiple of heads {self.heads}: choose heads that divide it')
        if context is None:
            q, k, v = StackedDense(3, width, (0, 2), self.dtype, name='qkv')(x)
        else:
            (q,) = StackedDense(1, width, (0,), self.dtype, name='q')(x)
            k, v = StackedDense(2, width, (1,), self.dtype, name='kv')(context)
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1) for t in (q, k, v))
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        out = attend(q, k, v, valid).reshape(x.shape)
        return Dense(width, dtype=self.dtype, kernel_init=xavier, name='out')(out)


class Mlp(nn.Module):
    ratio: float = 4.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x):
        hidden = Dense(int(x.shape[-1] * self.ratio), dtype=self.dtype, kernel_init=xavier, name='fc1')(x)
        return Dense(x.shape[-1], dtype=self.dtype, kernel_init=xavier, name='fc2')(gelu(hidden))


class Modulation(nn.Module):
    """`count` vectors [count, B, 1, D] of a condition f32[B, D], all zero at first (adaLN-Zero of DiT, arXiv 2212.09748)."""

    count: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, condition):
        width = condition.shape[-1]
        zero = nn.initializers.zeros
        out = nn.Dense(self.count * width, dtype=self.dtype, kernel_init=zero, name='out')(nn.silu(condition))
        return out.reshape(-1, self.count, 1, width).swapaxes(0, 1)


class Block(nn.Module):
    """Pre-norm block (arXiv 2010.11929); attends to `context` in place of itself where given.

    A condition f32[B, D] shifts and scales what both branches read, and gates what they add (arXiv 2212.09748).
    """

    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    eps: float = 1e-6
    dtype: str = 'float32'

    def _add(self, x, branch, keep, name):
        if self.layer_scale is not None:  # arXiv 2103.17239
            init = nn.initializers.constant(self.layer_scale)
            branch = branch * self.param(f'layer_scale_{name}', init, branch.shape[-1:]).astype(branch.dtype)
        if keep is not None:
            branch = branch * keep[:, None, None].astype(branch.dtype)
        return x + branch

    @nn.compact
    def __call__(
        self, x, context=None, valid=None, keep=None, turn=None, condition=None
    ):  # keep: f32[2, B] | None, see drop_path
        keep = (None, None) if keep is None else keep
        shift1, scale1, gate1, shift2, scale2, gate2 = [None] * 6
        if condition is not None:
            shift1, scale1, gate1, shift2, scale2, gate2 = Modulation(6, self.dtype, name='modulation')(condition)
        normed = modulate(LayerNorm(self.eps, name='norm1')(x), shift1, scale1)
        branch = Attention(self.heads, self.dtype, name='attention')(normed, context, valid, turn)
        x = self._add(x, branch if gate1 is None else branch * gate1, keep[0], 'attention')
        normed = modulate(LayerNorm(self.eps, name='norm2')(x), shift2, scale2)
        branch = Mlp(self.mlp_ratio, self.dtype, name='mlp')(normed)
        return self._add(x, branch if gate2 is None else branch * gate2, keep[1], 'mlp')


def modulate(x, shift=None, scale=None):
    """x * (1 + scale) + shift, or x where there is no condition."""
    return x if scale is None else x * (1 + scale) + shift


class Blocks(nn.Module):
    """`depth` blocks. Parameters are `block_0`, `block_1`, ... whether layers are unrolled or, with `scan`, rolled.

    `remat`: 'none', 'full', or 'dots' (keeps products with parameters, recomputes the rest, attention included).
    Unrolled costs fewer cycles on TPU; scan compiles faster. Drop path grows linearly to `drop_path` at the last
    block and draws from the RNG stream 'drop_path' when `train`.
    """

    depth: int
    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    drop_path: float = 0.0
    eps: float = 1e-6
    dtype: str = 'float32'
    scan: bool = False
    remat: str = 'none'

    def _block_type(self):
        if self.remat == 'none':
            return Block
        if self.remat not in REMAT:
            raise InputError(f'remat {self.remat!r} is not one of {", ".join(["none", *REMAT])}')
        return nn.remat(Block, policy=REMAT[self.remat], prevent_cse=not self.scan)

    @nn.compact
    def __call__(
        self, x, context=None, valid=None, turn=None, condition=None, *, train=False
    ):  # [B, N, D], ... -> [B, N, D]
        block = partial(self._block_type(), self.heads, self.mlp_ratio, self.layer_scale, self.eps, self.dtype)
        keep = None
        if train and self.drop_path:
            rates = jnp.linspace(0, self.drop_path, self.depth)
            keep = drop_path(self.make_rng('drop_path'), rates, x.shape[0])
        if self.scan and not self.is_initializing():
            layers = [self.variables['params'][f'block_{i}'] for i in range(self.depth)]

            def body(x, layer):
                params, keep = layer
                return block(parent=None).apply({'params': params}, x, context, valid, keep, turn, condition), None

            return lax.scan(body, x, (jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers), keep))[0]
        for i in range(self.depth):
            x = block(name=f'block_{i}')(x, context, valid, None if keep is None else keep[i], turn, condition)
        return x
