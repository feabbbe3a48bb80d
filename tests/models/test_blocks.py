import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import InputError
from mim_jax.models import blocks, kernels
from mim_jax.models.blocks import Block, Blocks

TOLERANCE = {'float32': dict(rtol=1e-5, atol=1e-5), 'bfloat16': dict(rtol=3e-2, atol=3e-2)}


def normal(seed, *shape, dtype='float32'):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def agree(f, reference, arrays, tolerance):
    """Values and gradients of f and of its reference; the reference computes in f32."""
    wide = [a.astype(jnp.float32) for a in arrays]
    out, pull = jax.vjp(jax.jit(f), *arrays)
    goal, goal_pull = jax.vjp(reference, *wide)
    cotangent = normal(9, *out.shape)
    for a, b in zip((out, *pull(cotangent.astype(out.dtype))), (goal, *goal_pull(cotangent)), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, **tolerance)


def kept_shapes(f, *args):
    """Shapes of all that the backward pass of f holds on to."""
    return [leaf.shape for leaf in jax.tree.leaves(jax.vjp(f, *args)[1])]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_layer_norm(dtype):
    x, scale, bias = 3 * normal(0, 2, 5, 16, dtype=dtype) + 1, normal(1, 16), normal(2, 16)
    wide = np.asarray(x, np.float64)
    goal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6) * scale + bias
    out = kernels.layer_norm(x, scale, bias, 1e-6)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32), goal, **TOLERANCE[dtype])
    agree(
        lambda *a: kernels.layer_norm(*a, 1e-6),
        lambda *a: kernels.layer_norm_reference(*a, 1e-6),
        (x, scale, bias),
        TOLERANCE[dtype] if dtype == 'float32' else dict(rtol=3e-2, atol=0.1),
    )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gelu(dtype):
    x = jnp.linspace(-6, 6, 101).astype(dtype)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in np.asarray(x, np.float64)]
    np.testing.assert_allclose(kernels.gelu(x).astype(jnp.float32), exact, **TOLERANCE[dtype])
    agree(kernels.gelu, lambda x: jax.nn.gelu(x, approximate=False), (x,), TOLERANCE[dtype])


def test_backward_passes_keep_only_their_input():
    x, scale = normal(0, 4, 16), normal(1, 16)
    assert kept_shapes(lambda x: kernels.gelu(kernels.layer_norm(x, scale, scale, 1e-6)), x).count(x.shape) == 2


def long_tokens_first(q, k, v, valid):
    return kernels._attend_long(q, k, v, valid, 'bqhc,bkhc->bhkq', 'bhkq,bkhc->bqhc')


HEADS_FIRST = [partial(kernels._heads_first, form) for form in (kernels._attend, kernels._attend_long)]


@pytest.mark.parametrize('form', [kernels._tokens_first, long_tokens_first, *HEADS_FIRST])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('padded', [False, True])
def test_attention_forms(form, dtype, padded):
    q, k, v = normal(0, 3, 4, 2, 8, dtype=dtype), normal(1, 3, 6, 2, 8, dtype=dtype), normal(2, 3, 6, 2, 8, dtype=dtype)
    valid = jnp.array([[True] * 6, [True, False, True, True, False, False], [False] * 6]) if padded else None
    agree(
        lambda q, k, v: form(q * 8**-0.5, k, v, valid),
        lambda q, k, v: kernels.attend_reference(q, k, v, valid),
        (q, k, v),
        TOLERANCE[dtype],
    )


def test_invalid_keys_reach_nothing_and_rows_without_keys_are_zero():
    q, k, v = normal(0, 2, 3, 1, 4), normal(1, 2, 5, 1, 4), normal(2, 2, 5, 1, 4)
    valid = jnp.array([[True, True, True, False, False], [False] * 5])
    poison = jnp.where(valid[:, :, None, None], 0, 1e30)
    out, pull = jax.vjp(lambda k, v: kernels.attend(q, k, v, valid), k + poison, v + poison)
    np.testing.assert_array_equal(out, kernels.attend(q, k, v, valid))
    assert not out[1].any()
    for grad in pull(jnp.ones_like(out)):
        assert jnp.isfinite(grad).all()
        assert not grad[0, 3:].any() and not grad[1].any()


@pytest.mark.parametrize('form', [kernels._tokens_first, long_tokens_first, *HEADS_FIRST])
def test_attention_of_large_scores(form):
    q, k, v = 300 * normal(0, 1, 4, 2, 8), normal(1, 1, 6, 2, 8), normal(2, 1, 6, 2, 8)
    agree(
        lambda *a: form(*a, None),
        lambda q, k, v: kernels.attend_reference(q * 8**0.5, k, v),
        (q, k, v),
        dict(rtol=1e-3, atol=1e-3),
    )


def test_attention_by_hand():
    q = k = jnp.zeros((1, 2, 1, 3))
    v = jnp.arange(6.0).reshape(1, 2, 1, 3)
    np.testing.assert_allclose(kernels.attend(q, k, v)[0, 0, 0], [1.5, 2.5, 3.5])


STACK = dict(depth=3, heads=2, drop_path=0.5, layer_scale=0.1)


def stack_results(dtype='float32', **options):
    x, valid = normal(0, 4, 5, 8, dtype=dtype), jnp.ones((4, 5), bool).at[0, 3:].set(False)
    stack = Blocks(**STACK, dtype=dtype, **options)
    params = jax.jit(Blocks(**STACK).init)(jax.random.key(1), x)

    def loss(params):
        out = stack.apply(params, x, valid=valid, train=True, rngs={'drop_path': jax.random.key(2)})
        return (out.astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize('options', [dict(scan=True), dict(remat='full'), dict(scan=True, remat='dots')])
def test_scan_and_remat_change_nothing(options):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), stack_results(**options), stack_results()
    )


def test_bfloat16_stays_near_float32_and_parameters_stay_float32():
    (low, grads), (high, _) = stack_results('bfloat16'), stack_results()
    np.testing.assert_allclose(low, high, rtol=0.05)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))


def test_parameters_are_stored_by_layer():
    params = jax.eval_shape(Blocks(depth=2, heads=2, scan=True).init, jax.random.key(0), normal(0, 1, 3, 8))['params']
    assert set(params) == {'block_0', 'block_1'}
    assert params['block_0']['attention']['qkv']['kernel'].shape == (3, 8, 8)


def test_remat_keeps_no_scores():
    x = normal(0, 2, 7, 8)

    def shapes(remat):
        stack = Blocks(depth=1, heads=2, remat=remat)
        params = jax.jit(stack.init)(jax.random.key(0), x)
        return kept_shapes(lambda p: stack.apply(p, x), params)

    assert (2, 2, 7, 7) in shapes('none')
    assert (2, 2, 7, 7) not in shapes('dots') and (2, 2, 7, 7) not in shapes('full')


def test_drop_path_drops_whole_rows_and_keeps_the_mean():
    keep = blocks.drop_path(jax.random.key(0), jnp.linspace(0, 0.5, 3), 4000)
    assert keep.shape == (3, 2, 4000)
    np.testing.assert_array_equal(keep[0], 1)
    np.testing.assert_allclose(keep.mean(-1), 1, atol=0.06)
    block, x = Block(heads=2), normal(0, 2, 3, 8)
    params = block.init(jax.random.key(0), x)
    out = block.apply(params, x, keep=jnp.array([[0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(out[0], x[0])
    assert not jnp.allclose(out[1], x[1])


def test_wrong_options_are_named():
    with pytest.raises(InputError, match='heads 3'):
        Block(heads=3).init(jax.random.key(0), normal(0, 1, 3, 8))
    with pytest.raises(InputError, match='dots'):
        Blocks(depth=1, heads=2, remat='half').init(jax.random.key(0), normal(0, 1, 3, 8))
