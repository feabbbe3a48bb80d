"""Attention of short sequences on TPU, as one kernel that keeps scores and weights in the chip's fast memory.

Heads are taken where they lie, side by side in the last axis: a product over all the lanes of a group costs the matrix unit no more
than one over the lanes of a head, so the other heads are zeroed rather than cut away, and nothing is laid out anew.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
SUBLANES = 32  # rows of int8, the least that blocks of queries are made of
SCORES = 3 << 17  # of a block of queries, which have to fit the fast memory several times
KEYS = 2048  # whose gradients fit beside them
ROWS = 256  # tokens that one call of a kernel takes at least, if there are as many: more samples hide each other's latencies
MOST = 8  # samples of one call

dot = partial(lax.dot_general, preferred_element_type=jnp.float32)
BY_LANES = (((1,), (1,)), ((), ()))  # [a, c] x [b, c] -> [a, b]
BY_ROWS = (((1,), (0,)), ((), ()))  # [a, c] x [c, b] -> [a, b]
TRANSPOSED = (((0,), (0,)), ((), ()))  # [c, a] x [c, b] -> [a, b]


def block_of(queries: int, keys: int, masked: bool = False) -> int | None:
    """Queries of a block: all, or the largest divisor that keeps its scores small; None where there is none. `masked`: each query has a mask of its own."""
    unit = LANES if masked else SUBLANES  # the backward pass has the queries of a mask in the last axis
    sizes = [queries] + [n for n in range(queries, 0, -1) if queries % n == 0 and n % unit == 0]
    return next((n for n in sizes if n * keys <= SCORES), None) if keys <= KEYS else None


def suits(q, k, valid, heads: int) -> bool:
    """Whether q[B, Q, H, C] and k[B, K, H, C], `heads` of them at once, with valid[B, K] or [B, Q, K] or None, can go through the kernel."""
    block = block_of(q.shape[1], k.shape[1], valid is not None and valid.ndim == 3)
    channels = q.shape[-1]
    whole = LANES % channels == 0 and heads * channels % LANES == 0
    return whole and q.dtype == k.dtype == jnp.bfloat16 and block is not None


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(q, k, v, valid, channels: int, interpret: bool = False):
    """softmax(q k^T) v of every head, softmax in f32 (arXiv 1706.03762), for arrays that `suits` of.

    Args:
        q, k, v: [B, Q, D], [B, K, D], [B, K, D], heads side by side in D; q is scaled already.
        valid: int8[B, 1, K] or int8[B, Q, K], 0 where a query may not look, or None; a query without any valid key gets zeros.
        channels: of a head.
        interpret: run it on any device, slowly.

    Returns:
        q.dtype[B, Q, D].
    """
    return _call(_forward_kernel, q, k, v, valid, channels=channels, interpret=interpret)[0]


def _forward(q, k, v, valid, channels, interpret):
    return attend(q, k, v, valid, channels, interpret), (q, k, v, valid)


def _backward(channels, interpret, residuals, g):
    q, k, v, valid = residuals
    turned = None if valid is None else valid.swapaxes(1, 2)
    return *_call(_backward_kernel, q, k, v, turned, g, channels=channels, interpret=interpret), None


attend.defvjp(_forward, _backward)


def _call(kernel, q, k, v, valid, *gradient, channels: int, interpret: bool):
    """Runs a kernel over blocks of samples, groups of heads and queries."""
    (batch, queries, width), keys = q.shape, k.shape[1]
    axis = 2 if gradient else 1  # of the queries in valid
    masked = valid is not None and valid.shape[axis] == queries > 1
    block, rows = block_of(queries, keys, masked), samples(batch, max(queries, keys))
    asked = pl.BlockSpec((rows, block, LANES), lambda b, g, i: (b, i, g))
    seen = pl.BlockSpec((rows, keys, LANES), lambda b, g, i: (b, 0, g))
    results = [(asked, q), (seen, k), (seen, v)][: 3 if gradient else 1]
    parts = block < queries and bool(gradient)
    product = 2 * batch * queries * keys * width * (LANES // channels)  # over all the lanes of a group for each head
    return pl.pallas_call(
        partial(kernel, channels=channels),
        grid=(batch // rows, width // LANES, queries // block),
        in_specs=[asked, seen, seen, _spec_of_valid(valid, rows, block if masked else 1, axis), *[asked] * len(gradient)],
        out_specs=[spec for spec, _ in results],
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for _, like in results],
        scratch_shapes=[pltpu.VMEM((rows, keys, LANES), jnp.float32)] * (2 * parts),
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary')),
        cost_estimate=pl.CostEstimate(
            flops=(5 if gradient else 2) * product,
            transcendentals=batch * queries * keys * width // channels,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (q, k, v, *gradient, *(like for _, like in results))),
        ),
        interpret=interpret,
        name=kernel.__name__.strip('_'),
    )(q, k, v, valid, *gradient)  # fmt: skip


def samples(batch: int, tokens: int) -> int:
    """Samples of one call of a kernel."""
    return next(n for n in range(max(1, min(MOST, ROWS // tokens)), 0, -1) if batch % n == 0)


def _spec_of_valid(valid, rows: int, block: int, axis: int):
    """How valid[B, Q, K] or [B, K, Q] is cut: along `axis`, the queries', into blocks; 1 stands for all queries."""
    if valid is None:
        return None
    shape = list(valid.shape)
    shape[0], shape[axis] = rows, block
    whole = shape[axis] == valid.shape[axis]
    return pl.BlockSpec(tuple(shape), lambda b, g, i: (b, *(0 if whole or a != axis else i for a in (1, 2))))


def _heads(channels: int) -> list:
    """bool[1, LANES] for each head in a group of lanes: which are its own."""
    head = lax.broadcasted_iota(jnp.int32, (1, LANES), 1) // channels
    return [head == i for i in range(LANES // channels)]


def _only(mine, x):
    return jnp.where(mine, x, jnp.zeros_like(x))


def _weights(scores, valid, axis: int):
    """(weights, their sum) before division, f32, over the keys' axis."""
    if valid is not None:
        seen = valid.astype(jnp.int32) != 0
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - scores.max(axis, keepdims=True))
    weights = weights if valid is None else jnp.where(seen, weights, 0)
    total = weights.sum(axis, keepdims=True)
    return weights, jnp.maximum(total, 1)  # the largest weight is 1, but where nothing is valid


def _forward_kernel(q_ref, k_ref, v_ref, valid_ref, out_ref, *, channels):
    for row in range(q_ref.shape[0]):
        q, k, v, valid = (None if ref is None else ref[row] for ref in (q_ref, k_ref, v_ref, valid_ref))
        out = jnp.zeros(q.shape, jnp.float32)
        for mine in _heads(channels):
            weights, total = _weights(dot(q, _only(mine, k), BY_LANES), valid, 1)  # f32[Q, K]
            out = jnp.where(mine, dot(weights.astype(v.dtype), v, BY_ROWS) / total, out)
        out_ref[row] = out.astype(out_ref.dtype)


def _backward_kernel(q_ref, k_ref, v_ref, valid_ref, g_ref, dq_ref, dk_ref, dv_ref, *sums, channels):
    """Keys before queries: two of the three products of weights then need no transpose, and sums go along rows."""
    for row in range(q_ref.shape[0]):
        q, k, v, valid, g = (None if ref is None else ref[row] for ref in (q_ref, k_ref, v_ref, valid_ref, g_ref))
        dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
        for mine in _heads(channels):
            q_head, g_head = _only(mine, q), _only(mine, g)
            weights, total = _weights(dot(k, q_head, BY_LANES), valid, 0)  # f32[K, Q]
            weights = weights * (1 / total)
            dweights = dot(v, g_head, BY_LANES)
            mean = (weights * dweights).sum(0, keepdims=True)
            dscores = (weights * (dweights - mean)).astype(q.dtype)
            dv += dot(weights.astype(v.dtype), g_head, BY_ROWS)
            dk += dot(dscores, q_head, BY_ROWS)
            dq += dot(dscores, _only(mine, k), TRANSPOSED)
        dq_ref[row] = dq.astype(dq_ref.dtype)
        _add(row, (dk_ref, dv_ref), (dk, dv), sums)


def _add(row: int, refs, parts, sums) -> None:
    """Writes gradients of keys and values, over several blocks of queries when the last one is there."""
    if not sums:
        for ref, part in zip(refs, parts, strict=True):
            ref[row] = part.astype(ref.dtype)
        return
    block, last = pl.program_id(2), pl.num_programs(2) - 1
    for ref, part, total in zip(refs, parts, sums, strict=True):
        total[row] = jnp.where(block == 0, 0, total[row]) + part

        @pl.when(block == last)
        def _(ref=ref, total=total):
            ref[row] = total[row].astype(ref.dtype)
