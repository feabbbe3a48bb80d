import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models import CrossAttention, Linear, SelfAttention

B, E, K, T, D, WIDTH = 2, 2, 4, 3, 8, 5
Z = jax.random.normal(jax.random.key(0), (B, E + K, D))
SEEN = jnp.stack([jnp.arange(K, dtype=jnp.float32), jnp.zeros(K)], -1)[None].repeat(B, 0)
ASKED = jnp.stack([jnp.arange(T, dtype=jnp.float32), jnp.ones(T)], -1)[None].repeat(B, 0)
DECODER = dict(width=16, depth=2, heads=2)
DECODERS = [
    SelfAttention(**DECODER),
    CrossAttention(**DECODER),
    SelfAttention(**DECODER, positions='learned', grid=(4, 2)),
]


init = jax.jit(lambda predictor, *args: predictor.init_with_output(jax.random.key(1), *args), static_argnums=(0, 4))
apply = jax.jit(lambda predictor, *args, **valid: predictor.apply(*args, **valid), static_argnums=(0, 5))


@pytest.mark.parametrize('predictor', [*DECODERS, SelfAttention(**DECODER, dtype='bfloat16', scan=True, remat='full')])
def test_asked_tokens_are_answered_whatever_their_order(predictor):
    out, params = init(predictor, Z, SEEN, ASKED, WIDTH)
    assert out.shape == (B, T, WIDTH) and out.dtype == jnp.float32
    order = jnp.array([2, 0, 1])
    shuffled = apply(predictor, params, Z, SEEN, ASKED[:, order], WIDTH)
    np.testing.assert_allclose(shuffled, out[:, order], atol=0.1 if predictor.dtype == 'bfloat16' else 1e-5)


@pytest.mark.parametrize('predictor', DECODERS[:2])
def test_padding_reaches_nothing(predictor):
    _, params = init(predictor, Z, SEEN, ASKED, WIDTH)
    seen, asked = jnp.array([[True, True, True, False]] * B), jnp.array([[True, True, False]] * B)
    out = apply(predictor, params, Z, SEEN, ASKED, WIDTH, valid_seen=seen, valid_asked=asked)
    short = apply(predictor, params, Z[:, :-1], SEEN[:, :-1], ASKED[:, :-1], WIDTH)
    np.testing.assert_allclose(out[:, :2], short, atol=1e-5)
    only_seen = apply(predictor, params, Z, SEEN, ASKED, WIDTH, valid_seen=seen)
    np.testing.assert_allclose(only_seen, apply(predictor, params, Z[:, :-1], SEEN[:, :-1], ASKED, WIDTH), atol=1e-5)


def test_only_self_attention_lets_asked_tokens_see_each_other():
    for predictor, alone in ((SelfAttention(**DECODER), False), (CrossAttention(**DECODER), True)):
        out, params = init(predictor, Z, SEEN, ASKED, WIDTH)
        first = apply(predictor, params, Z, SEEN, ASKED[:, :1], WIDTH)
        assert jnp.allclose(first, out[:, :1], atol=1e-5) == alone


def test_linear_reads_the_token_at_each_asked_position():
    predictor, picked = Linear(), jnp.array([[2, 0, 3], [1, 1, 2]])
    asked = jnp.take_along_axis(SEEN, picked[..., None], 1)
    out, params = init(predictor, Z, SEEN, asked, WIDTH)
    head = params['params']['head']
    tokens = jnp.take_along_axis(Z[:, E:], picked[..., None], 1)
    np.testing.assert_allclose(out, tokens @ head['kernel'] + head['bias'], atol=1e-5)
    np.testing.assert_array_equal(
        apply(predictor, params, Z, SEEN, ASKED, WIDTH), jnp.zeros((B, T, WIDTH)) + head['bias']
    )


def test_seen_tokens_are_answered_first_where_wanted():
    wide = SelfAttention(**DECODER, seen=True)
    out, params = init(wide, Z, SEEN, ASKED, WIDTH)
    assert out.shape == (B, K + T, WIDTH)
    np.testing.assert_allclose(out[:, K:], apply(SelfAttention(**DECODER), params, Z, SEEN, ASKED, WIDTH), atol=1e-5)
    moved = apply(wide, params, Z.at[:, E + 1].add(1.0), SEEN, ASKED, WIDTH) - out
    assert (jnp.abs(moved).max(-1).argmax(-1) == 1).all()  # its own answer changes most
    assert apply(wide, params, Z, SEEN, ASKED[:, :0], WIDTH).shape == (B, K, WIDTH)
    out, params = init(Linear(seen=True), Z, SEEN, ASKED[:, :0], WIDTH)
    head = params['params']['head']
    np.testing.assert_allclose(out, Z[:, E:] @ head['kernel'] + head['bias'], atol=1e-5)


def test_a_condition_of_another_width_is_told():
    predictor, told = SelfAttention(**DECODER), jnp.ones((B, D))
    params = predictor.init(jax.random.key(1), Z, SEEN, ASKED, WIDTH, condition=told)
    params = jax.tree.map(lambda x: x + 0.1, params)
    a, b = (predictor.apply(params, Z, SEEN, ASKED, WIDTH, condition=c) for c in (told, 2 * told))
    assert params['params']['condition']['kernel'].shape == (D, 16) and jnp.abs(a - b).max() > 1e-3
