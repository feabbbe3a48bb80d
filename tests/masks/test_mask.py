import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.masks import mask as m


def test_rank_counts_what_comes_before(form):
    score = jnp.array(np.random.default_rng(0).integers(0, 5, (3, 40)), jnp.float32)  # many ties
    expected = np.argsort(np.argsort(np.asarray(score), axis=-1, kind='stable'), axis=-1, kind='stable')
    np.testing.assert_array_equal(m.rank(score), expected)


def test_positions_are_ascending(form):
    chosen = np.zeros((2, 10), bool)
    chosen[0, [1, 4, 9]] = chosen[1, [0, 2, 3]] = True
    np.testing.assert_array_equal(m.positions(jnp.array(chosen), 3), [[1, 4, 9], [0, 2, 3]])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'bool'])
def test_take_is_exact(form, dtype):
    x = np.random.default_rng(1).normal(size=(2, 9, 5)) * 1e3
    x = jnp.array(x > 0) if dtype == 'bool' else jnp.array(x, dtype)
    index = jnp.array([[0, 3, 8], [5, 6, 7]])
    taken = m.take(x, index)
    assert taken.dtype == x.dtype
    np.testing.assert_array_equal(
        np.asarray(taken, np.float32), np.take_along_axis(np.asarray(x, np.float32), np.asarray(index)[..., None], 1)
    )
    np.testing.assert_array_equal(m.take(x[..., 0], index), taken[..., 0])


def test_take_has_the_gradient_of_a_gather(form):
    x, index = jnp.ones((1, 4, 2)), jnp.array([[1, 3]])
    grad = jax.grad(lambda x: (m.take(x, index) * jnp.array([2.0, 5.0])[None, :, None]).sum())(x)
    np.testing.assert_array_equal(grad[0, :, 0], [0, 2, 0, 5])


def test_a_key_per_row_does_not_depend_on_the_split():
    keys = jax.random.split(jax.random.key(3), 8)
    whole = m.per_row(keys, jax.random.uniform, (8, 11))
    np.testing.assert_array_equal(whole[2:5], m.per_row(keys[2:5], jax.random.uniform, (3, 11)))


def test_dropping_needs_equal_rows():
    mask = m.Mask(jnp.zeros((1, 4), bool), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)), None)
    with pytest.raises(ValueError, match='mask_token'):
        _ = mask.visible
