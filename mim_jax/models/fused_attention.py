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
SUBLANES = 16  # rows of bf16 that blocks of queries are made of
SCORES = 1 << 18  # of a block of queries, which have to fit the fast memory several times
ROWS = 256  # tokens that one call of a kernel takes at least, if there are as many: more samples hide each other's latencies
MOST = 8  # samples of one call

dot = partial(lax.dot_general, preferred_element_type=jnp.float32)
BY_LANES = (((1,), (1,)), ((), ()))  # [a, c] x [b, c] -> [a, b]
BY_ROWS = (((1,), (0,)), ((), ()))  # [a, c] x [c, b] -> [a, b]
TRANSPOSED = (((0,), (0,)), ((), ()))  # [c, a] x [c, b] -> [a, b]


def block_of(queries: int, keys: int) -> int | None:
    """Queries of a block: all, or the largest divisor that keeps its scores small; None where there is none."""
    sizes = [queries] + [n for n in range(queries, 0, -1) if queries % n == 0 and n % SUBLANES == 0]
    return next((n for n in sizes if n * keys <= SCORES), None)


def suits(q, k, heads: int) -> bool:
    """Whether q[B, Q, H, C] and k[B, K, H, C], `heads` of them at once, can go through the kernel."""
    channels = q.shape[-1]
    whole = LANES % channels == 0 and heads * channels % LANES == 0
    return whole and q.dtype == k.dtype == jnp.bfloat16 and block_of(q.shape[1], k.shape[1]) is not None


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend(q, k, v, channels: int, interpret: bool = False):
    """softmax(q k^T) v of every head, softmax in f32 (arXiv 1706.03762), for arrays that `suits` of.

    Args:
        q, k, v: [B, Q, D], [B, K, D], [B, K, D], heads side by side in D; q is scaled already.
        channels: of a head.
        interpret: run it on any device, slowly.

    Returns:
        q.dtype[B, Q, D].
    """
    return _call(_forward_kernel, (q, k, v), 'q', channels, interpret)[0]


def _forward(q, k, v, channels, interpret):
    return attend(q, k, v, channels, interpret), (q, k, v)


def _backward(channels, interpret, residuals, g):
    return tuple(_call(_backward_kernel, (*residuals, g), 'qkk', channels, interpret))


attend.defvjp(_forward, _backward)


def _call(kernel, operands, results: str, channels: int, interpret: bool):
    """Runs a kernel over blocks of samples, groups of heads and queries; `results` are like queries or like keys."""
    (batch, queries, width), keys = operands[0].shape, operands[1].shape[1]
    block = block_of(queries, keys)
    rows = next(n for n in range(max(1, min(MOST, ROWS // max(queries, keys))), 0, -1) if batch % n == 0)
    asked = pl.BlockSpec((rows, block, LANES), lambda b, g, i: (b, i, g))
    seen = pl.BlockSpec((rows, keys, LANES), lambda b, g, i: (b, 0, g))
    like = {'q': (asked, operands[0]), 'k': (seen, operands[1])}
    summed = [pltpu.VMEM((rows, keys, LANES), jnp.float32)] * (2 if results == 'qkk' and block < queries else 0)
    return pl.pallas_call(
        partial(kernel, channels=channels),
        grid=(batch // rows, width // LANES, queries // block),
        in_specs=[asked, seen, seen, asked][: len(operands)],
        out_specs=[like[kind][0] for kind in results],
        out_shape=[jax.ShapeDtypeStruct(like[kind][1].shape, operands[0].dtype) for kind in results],
        scratch_shapes=summed,
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary')),
        interpret=interpret,
        name=kernel.__name__.strip('_'),
    )(*operands)


def _heads(width: int, channels: int) -> list:
    """bool[1, width] for each head in a group of lanes: which are its own."""
    head = lax.broadcasted_iota(jnp.int32, (1, width), 1) // channels
    return [head == i for i in range(width // channels)]


def _only(mine, x):
    return jnp.where(mine, x, jnp.zeros_like(x))


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, *, channels):
    for row in range(q_ref.shape[0]):
        q, k, v = q_ref[row], k_ref[row], v_ref[row]
        out = jnp.zeros(q.shape, jnp.float32)
        for mine in _heads(LANES, channels):
            scores = dot(q, _only(mine, k), BY_LANES)  # f32[Q, K]
            weights = jnp.exp(scores - scores.max(1, keepdims=True))
            mixed = dot(weights.astype(v.dtype), v, BY_ROWS) / weights.sum(1, keepdims=True)
            out = jnp.where(mine, mixed, out)
        out_ref[row] = out.astype(out_ref.dtype)


def _backward_kernel(q_ref, k_ref, v_ref, g_ref, dq_ref, dk_ref, dv_ref, *sums, channels):
    """Keys before queries: two of the three products of weights then need no transpose, and sums go along rows."""
    for row in range(q_ref.shape[0]):
        q, k, v, g = q_ref[row], k_ref[row], v_ref[row], g_ref[row]
        dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
        for mine in _heads(LANES, channels):
            q_head, g_head = _only(mine, q), _only(mine, g)
            scores = dot(k, q_head, BY_LANES)  # f32[K, Q]
            weights = jnp.exp(scores - scores.max(0, keepdims=True))
            weights = weights * (1 / weights.sum(0, keepdims=True))
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
