"""The kernel for TPUs, run by Pallas' interpreter, against the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import sharding
from mim_jax.models import fused_attention
from mim_jax.models.kernels import attend_reference

TOLERANCE = {jnp.float32: 3e-6, jnp.bfloat16: 0.02}


def arrays(batch, queries, keys, heads, channels):
    rng = np.random.default_rng(0)
    sizes = (queries, keys, keys, queries)
    q, k, v, g = (jnp.asarray(rng.standard_normal((batch, n, heads * channels)), jnp.bfloat16) for n in sizes)
    return [x.astype(jnp.float32) for x in (q * channels**-0.5, k, v, g)]  # exact in bf16 too


def plain(heads, channels, valid=None):
    """The reference, of heads side by side and of scaled queries."""

    def apart(x):
        return x.reshape(*x.shape[:2], heads, channels)

    return lambda q, k, v: attend_reference(apart(q) * channels**0.5, apart(k), apart(v), valid).reshape(q.shape)


def results(attend, dtype, arrays):
    """(out, dq, dk, dv) in f32."""
    *operands, g = (x.astype(dtype) for x in arrays)

    @jax.jit
    def both(*operands):
        out, back = jax.vjp(attend, *operands)
        return out, *back(g)

    return [np.asarray(x, np.float32) for x in both(*operands)]


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ('batch', 'queries', 'keys', 'heads', 'channels'),
    [(4, 13, 13, 2, 64), (1, 16, 24, 4, 32), (3, 8, 5, 2, 128)],
)
def test_values_and_gradients_of_the_plain_form(dtype, batch, queries, keys, heads, channels):
    given = arrays(batch, queries, keys, heads, channels)
    found = results(lambda q, k, v: fused_attention.attend(q, k, v, None, channels, True), dtype, given)
    for ours, theirs in zip(found, results(plain(heads, channels), jnp.float32, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE[dtype] * np.abs(theirs).max())


def test_gradients_of_keys_add_up_over_blocks_of_queries(monkeypatch):
    monkeypatch.setattr(fused_attention, 'SCORES', 32 * 40)
    assert fused_attention.block_of(64, 40) == 32
    given = arrays(2, 64, 40, 2, 64)
    found = results(lambda q, k, v: fused_attention.attend(q, k, v, None, 64, True), jnp.float32, given)
    for ours, theirs in zip(found, results(plain(2, 64), jnp.float32, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * np.abs(theirs).max())


@pytest.mark.parametrize('each', [False, True])
@pytest.mark.parametrize('blocks', [1, 2])
def test_what_is_not_valid_is_not_seen(monkeypatch, each, blocks):
    monkeypatch.setattr(fused_attention, 'SCORES', 256 * 24 // blocks)
    given = arrays(2, 256, 24, 2, 64)
    valid = np.random.default_rng(1).random((2, 256, 24) if each else (2, 24)) < 0.6
    valid[1] = False  # nothing to look at: zeros
    told = jnp.asarray(valid if each else valid[:, None], jnp.int8)
    found = results(lambda q, k, v: fused_attention.attend(q, k, v, told, 64, True), jnp.float32, given)
    for ours, theirs in zip(found, results(plain(2, 64, valid), jnp.float32, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6 * np.abs(theirs).max())


def test_scores_far_from_zero_stay_finite():
    q, k, v, g = arrays(1, 8, 8, 2, 64)
    found = results(lambda q, k, v: fused_attention.attend(q, k, v, None, 64, True), jnp.float32, (100 * q, k, v, g))
    assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize(
    ('queries', 'keys', 'masked', 'block'),
    [
        (50, 50, False, 50),
        (197, 197, True, 197),
        (1568, 1568, False, 224),
        (1025, 1025, False, None),
        (640, 640, True, 128),
        (1024, 1024, True, 256),
    ],
)
def test_blocks_of_queries(queries, keys, masked, block):
    assert fused_attention.block_of(queries, keys, masked) == block


def test_what_suits():
    def suits(heads, channels, at_once, tokens=50, dtype=jnp.bfloat16, valid=None):
        x = jax.ShapeDtypeStruct((2, tokens, heads, channels), dtype)
        return fused_attention.suits(x, x, valid, at_once)

    assert suits(16, 64, 16) and suits(16, 32, 4) and suits(4, 128, 1)
    assert not suits(3, 64, 3)  # 192 lanes are not whole groups
    assert not suits(16, 80, 16)  # heads lie across groups
    assert not suits(16, 64, 1)  # half a group on each device
    assert not suits(16, 64, 16, tokens=1025)
    assert not suits(16, 64, 16, dtype=jnp.float32)
    assert not suits(16, 64, 16, tokens=4096)  # gradients of the keys would not fit
    each = jax.ShapeDtypeStruct((2, 1568, 1568), jnp.bool_)
    assert suits(16, 64, 16, tokens=1568) and not suits(16, 64, 16, tokens=1568, valid=each)


@pytest.mark.parametrize(
    ('batch', 'heads', 'shape'), [(8, 4, (2, 13, 128)), (8, 3, (2, 13, 192)), (3, 4, (3, 13, 128))]
)
def test_each_device_runs_its_share(batch, heads, shape):
    seen = []

    def fn(q, k, v, mask):
        seen.append((q.shape, mask is None or mask.shape))
        return q + k + v

    q, k, v, _ = arrays(batch, 13, 13, heads, 64)
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        share, at_once = sharding.on_each_device(fn, batch, heads)
        found = jax.jit(share)(q, k, v, jnp.zeros((batch, 1, 13)))
        np.testing.assert_allclose(found, q + k + v, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(share)(q, k, v, None), q + k + v, rtol=1e-6)
    assert seen == [(shape, (shape[0], 1, 13)), (shape, True)] and at_once == shape[2] // 64
    assert sharding.on_each_device(fn, batch, heads) == (fn, heads)  # without a mesh
