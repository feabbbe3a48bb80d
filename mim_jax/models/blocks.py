"""Transformer blocks: pre-norm attention and MLP, of the functions of `kernels`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.errors import InputError
from mim_jax.models.kernels import add_bias, attend, gelu, layer_norm, project, project_each, project_stacked, rotate

xavier = nn.initializers.xavier_uniform()
REMAT = {'full': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


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
        outs = lax.platform_dependent(x, kernel, cpu=project_each, tpu=project_each, default=project_stacked)
        for i, b in zip(self.biased, bias, strict=True):
            outs[i] = add_bias(outs[i], b)
        return outs


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


def in_width(condition, width, dtype):
    """A condition f32[B, D] or None for blocks of `width`: if D is another, by the layer `condition` of the module that asks."""
    if condition is None or condition.shape[-1] == width:
        return condition
    return nn.Dense(width, dtype=dtype, kernel_init=xavier, name='condition')(condition)


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
