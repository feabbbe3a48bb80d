import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import InputError
from mim_jax.models import ViT
from mim_jax.models.positions import sincos

B, K, R = 2, 5, 12
RAW = jax.random.normal(jax.random.key(0), (B, K, R))
POS = jax.random.uniform(jax.random.key(1), (B, K, 2), maxval=7)
TINY = dict(width=16, depth=2, heads=2)


def make(raw=RAW, pos=POS, valid=None, hidden=None, **options):
    vit = ViT(**TINY | options)
    return vit, jax.jit(vit.init)(jax.random.key(2), raw, pos, valid, hidden)


@pytest.mark.parametrize(('class_token', 'registers'), [(True, 0), (False, 0), (True, 3), (False, 2)])
def test_prefix(class_token, registers):
    vit = ViT(**TINY, class_token=class_token, registers=registers)
    out, params = jax.eval_shape(vit.init_with_output, jax.random.key(2), RAW, POS)
    assert vit.num_prefix == class_token + registers
    assert out.shape == (B, vit.num_prefix + K, 16)
    assert ('class_token' in params['params']) == class_token
    assert ('registers' in params['params']) == bool(registers)


@pytest.mark.parametrize(
    ('size', 'millions'), [('tiny', 5.5), ('s', 21.6), ('b', 85.6), ('l', 303.1), ('h', 630.4), ('g', 1010.8)]
)
def test_sizes_have_the_parameters_of_the_papers(size, millions):
    raw = jax.ShapeDtypeStruct((1, 4, (14 if size in 'gh' else 16) ** 2 * 3), jnp.float32)
    params = jax.eval_shape(ViT(size).init, jax.random.key(0), raw, jax.ShapeDtypeStruct((1, 4, 2), jnp.float32))
    assert round(sum(p.size for p in jax.tree.leaves(params)) / 1e6, 1) == millions  # positions are not parameters


def test_an_mlp_ratio_overrides_that_of_the_size():
    def hidden(size, **options):
        vit = ViT(size, depth=1, **options)
        params = jax.eval_shape(vit.init, jax.random.key(0), RAW, POS)['params']
        return params['blocks']['block_0']['mlp']['fc1']['bias'].shape[0]

    assert (hidden('g'), hidden('g', mlp_ratio=2.0), hidden('s')) == (6144, 2816, 1536)


def test_stem_is_a_product_with_raw_patches_plus_positions():
    vit, params = make(depth=1, class_token=False)
    params['params']['blocks'] = jax.tree.map(jnp.zeros_like, params['params']['blocks'])
    embed = params['params']['embed']
    x = RAW @ embed['kernel'] + embed['bias'] + sincos(POS, 16)
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(vit.apply(params, RAW, POS), x, atol=1e-5)


def test_order_of_tokens_does_not_matter():
    vit, params = make()
    order = jnp.array([3, 1, 4, 0, 2])
    out, shuffled = vit.apply(params, RAW, POS), vit.apply(params, RAW[:, order], POS[:, order])
    np.testing.assert_allclose(shuffled[:, 1:], out[:, 1:][:, order], atol=1e-5)


def test_invalid_tokens_reach_no_other():
    valid = jnp.array([[True, True, True, False, False], [True] * 5])
    vit, params = make()
    out = vit.apply(params, RAW, POS, valid)
    poisoned = vit.apply(params, RAW + 100.0 * ~valid[..., None], POS, valid)
    short = vit.apply(params, RAW[:1, :3], POS[:1, :3])
    np.testing.assert_array_equal(poisoned[:, :4], out[:, :4])
    np.testing.assert_allclose(out[:1, :4], short, atol=1e-5)


def test_hidden_tokens_are_replaced_by_the_mask_token():
    hidden = jnp.array([[True, False, False, True, False]] * B)
    vit, params = make(hidden=hidden)
    grad = jax.grad(lambda raw: vit.apply(params, raw, POS, hidden=hidden).sum())(RAW)
    assert not grad[hidden].any() and grad[~hidden].all(-1).all()
    assert 'mask_token' not in make()[1]['params']


def test_drop_path_acts_in_training_only():
    vit, params = make(drop_path=0.9)
    drop = vit.apply(params, RAW, POS, train=True, rngs={'drop_path': jax.random.key(3)})
    np.testing.assert_array_equal(vit.apply(params, RAW, POS), make()[0].apply(params, RAW, POS))
    assert not jnp.allclose(drop, vit.apply(params, RAW, POS))


def test_compute_type():
    vit = ViT(**TINY, dtype='bfloat16', positions='learned', grid=(7, 7), layer_scale=0.1)
    out, params = jax.eval_shape(vit.init_with_output, jax.random.key(2), RAW, POS)
    assert out.dtype == jnp.bfloat16
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


def test_wrong_options_are_named():
    with pytest.raises(InputError, match='tiny, s, b, l, h, g'):
        make(size='huge')
    with pytest.raises(InputError, match='width, depth and heads'):
        make(width=None)
