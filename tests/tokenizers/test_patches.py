import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.tokenizers import patches, patchify, unpatchify

CASES = [
    ((2, 32, 32, 3), (16, 16)),
    ((1, 96, 160, 3), (8, 16)),
    ((2, 10, 13, 4), (4, 5)),  # neither side divides
    ((2, 17, 2), (4,)),
    ((1, 4, 8, 12, 1), (2, 4, 3)),
    ((1, 3, 4, 4, 6, 5), (1, 2, 4, 3)),
    ((2, 4, 32, 48, 3), (2, 16, 16)),
]


@pytest.mark.parametrize(('shape', 'patch'), CASES)
def test_unpatchify_inverts_patchify(form, shape, patch):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(unpatchify(patchify(jnp.array(x), patch), patch, shape), x)


def test_patch_order_is_that_of_mae(form):
    x = np.random.default_rng(1).normal(size=(2, 8, 12, 3)).astype(np.float32)
    raw = np.asarray(patchify(jnp.array(x), (4, 4)))
    for row in range(2):
        for col in range(3):
            np.testing.assert_array_equal(
                raw[:, row * 3 + col].reshape(2, 4, 4, 3), x[:, row * 4 : row * 4 + 4, col * 4 : col * 4 + 4]
            )


def test_a_side_that_does_not_divide_is_padded_with_its_last_pixels():
    x = jnp.arange(5.0)[None, :, None]
    np.testing.assert_array_equal(patchify(x, (4,)), [[[0, 1, 2, 3], [4, 4, 4, 4]]])


def test_tokens_know_their_place():
    tokens = patches({'image': jnp.zeros((2, 6, 4, 1))}, patch=(2, 2))
    assert tokens.grid == (2, 3, 2) and tokens.valid is None
    np.testing.assert_array_equal(tokens.pos[1], [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]])


def test_padding_of_a_smaller_image_is_invalid():
    size = jnp.array([[6, 4], [3, 1]])
    tokens = patches({'image': jnp.zeros((2, 6, 4, 1)), 'size': size}, patch=(2, 2))
    np.testing.assert_array_equal(tokens.valid, [[1] * 6, [1, 0, 1, 0, 0, 0]])


def test_coordinates_are_stretched_to_the_native_grid():
    native = patches({'x': jnp.zeros((1, 8, 1))}, key='x', patch=(2,), native=(4,))
    np.testing.assert_array_equal(native.pos[0, :, 0], [0, 1, 2, 3])  # the identity where nothing changed
    finer = patches({'x': jnp.zeros((1, 16, 1))}, key='x', patch=(2,), native=(4,))
    np.testing.assert_allclose(finer.pos[0, :, 0], (np.arange(8) + 0.5) / 2 - 0.5)


@pytest.mark.parametrize(
    ('shape', 'patch', 'says'),
    [((1, 8, 8, 3), (16, 16), 'larger than the input'), ((1, 8, 8, 3), (2,), 'axes'), ((1, 8, 3), (2, 2), 'axes')],
)
def test_wrong_patches_say_so(shape, patch, says):
    with pytest.raises(ValueError, match=says):
        patchify(jnp.zeros(shape), patch)
