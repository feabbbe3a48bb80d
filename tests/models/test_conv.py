import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import InputError
from mim_jax.models import ConvDecoder, ConvEncoder
from mim_jax.models.conv import depth_to_space, factors, space_to_depth

SMALL = dict(widths=(8, 16), depth=1, patch=(4, 4))


def test_cells_of_pixels_become_channels_and_go_back():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    cells = space_to_depth(jnp.asarray(x), 2)
    assert cells.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(cells[1, 1, 2], x[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(depth_to_space(cells, 2), x)


@pytest.mark.parametrize('patch, levels, wanted', [(4, 1, [4]), (4, 2, [2, 2]), (4, 3, [1, 2, 2]), (16, 3, [4, 2, 2])])
def test_the_first_resolution_takes_what_halving_leaves(patch, levels, wanted):
    assert factors((patch, patch), levels) == wanted


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('side', [(8, 8), (12, 20)])
def test_there_and_back(dtype, side):
    encoder, decoder = ConvEncoder(**SMALL, dtype=dtype), ConvDecoder(**SMALL, channels=2, dtype=dtype)
    image, key = jax.ShapeDtypeStruct((2, *side, 2), 'float32'), jax.random.key(0)
    z, params = jax.eval_shape(encoder.init_with_output, key, image)
    assert z.shape == (2, side[0] // 4, side[1] // 4, 16) and z.dtype == dtype
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    out, _ = jax.eval_shape(decoder.init_with_output, key, z)
    assert out.shape == image.shape and out.dtype == jnp.float32


def test_one_set_of_parameters_serves_every_resolution():
    encoder = ConvEncoder(**SMALL)
    params = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    image = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    whole, part = (jax.jit(encoder.apply)(params, x) for x in (image, image[:, :48, :48]))
    np.testing.assert_allclose(whole[:, :8, :8], part[:, :8, :8], atol=1e-5)  # far enough from where it was cut


@pytest.mark.parametrize(
    'options, side, message',
    [
        (SMALL, (8, 6), 'images of 8 x 6 do not divide by the patch'),
        (SMALL | dict(patch=(4, 8)), (8, 8), 'has to be square'),
        (SMALL | dict(patch=(2, 4, 4)), (8, 8), 'has to be square'),
        (SMALL | dict(widths=(8, 8, 8, 8)), (8, 8), 'a multiple of 8'),
    ],
)
def test_what_does_not_fit_is_told(options, side, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(ConvEncoder(**options).init, jax.random.key(0), jnp.zeros((1, *side, 3)))
