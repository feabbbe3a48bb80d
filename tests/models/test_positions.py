import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import InputError
from mim_jax.models.positions import Positions, cubic_weights, sincos, sinusoid


def coordinates(grid, native=None):
    """f32[1, N, P] as the tokenizer gives them."""
    axes = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(grid, native or grid, strict=True)]
    return np.stack([a.reshape(-1) for a in np.meshgrid(*axes, indexing='ij')], -1)[None].astype(np.float32)


def one_axis(pos, width):
    angle = np.outer(pos, 10000.0 ** (-np.arange(width // 2) / (width / 2)))
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)


def test_sincos_is_that_of_mae():
    pos = coordinates((3, 5))
    goal = np.concatenate([one_axis(pos[0, :, 1], 8), one_axis(pos[0, :, 0], 8)], 1)
    np.testing.assert_allclose(sincos(pos, 16)[0], goal, atol=1e-6)


def test_sincos_is_that_of_transformers():
    model = pytest.importorskip('transformers.models.vit_mae.modeling_vit_mae')
    table = model.build_2d_sinusoidal_position_embedding(3, 5, 16).numpy()
    np.testing.assert_allclose(
        sincos(coordinates((3, 5)), 16)[0], np.concatenate([table[:, 8:], table[:, :8]], 1), atol=1e-6
    )


def test_sincos_of_other_numbers_of_axes():
    line, volume = coordinates((7,)), coordinates((2, 3, 2))
    np.testing.assert_allclose(sincos(line, 8)[0], one_axis(line[0, :, 0], 8), atol=1e-6)
    out = sincos(volume, 16)
    np.testing.assert_allclose(out[0, :, :4], one_axis(volume[0, :, 2], 4), atol=1e-6)
    assert not out[..., 12:].any()


@pytest.mark.parametrize('size', [1, 2, 5])
def test_cubic_weights_are_one_hot_at_integers_and_sum_to_one(size):
    np.testing.assert_array_equal(cubic_weights(jnp.arange(size, dtype=jnp.float32), size), np.eye(size))
    anywhere = cubic_weights(jnp.linspace(-2, size + 1, 50), size)
    np.testing.assert_allclose(anywhere.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ('native', 'grid'), [((4, 6), (7, 3)), ((3, 3), (12, 12)), ((5,), (8,)), ((2, 4, 4), (3, 4, 6))]
)
def test_learned_positions_resample_as_jax_image_resize(native, grid):
    width = 6
    module = Positions(width, 'learned', native)
    variables = module.init(jax.random.key(0), coordinates(native))
    table = variables['params']['table']
    np.testing.assert_array_equal(module.apply(variables, coordinates(native))[0], table.reshape(-1, width))
    goal = jax.image.resize(table, (*grid, width), 'cubic', antialias=False)
    out = jax.jit(module.apply)(variables, coordinates(grid, native))
    np.testing.assert_allclose(out[0], goal.reshape(-1, width), atol=1e-6)


def transformer_table(count, width):
    """Rows of the original Transformer in float64: the angle of column j falls with 2 (j // 2) / width."""
    column = np.arange(width)
    angle = np.arange(count)[:, None] / 10000.0 ** (2 * (column // 2) / width)
    return np.where(column % 2, np.cos(angle), np.sin(angle))


@pytest.mark.parametrize(('grid', 'width'), [((16, 16, 16), 32), ((8, 14, 14), 48), ((5,), 7), ((1, 3, 1), 6)])
def test_sinusoid_is_the_table_of_the_transformer_at_whole_coordinates(grid, width):
    out = jax.jit(sinusoid, static_argnums=(1, 2))(coordinates(grid), width, grid)
    np.testing.assert_allclose(out[0], transformer_table(np.prod(grid), width), atol=6e-7)


def test_sinusoid_is_that_of_transformers():
    model = pytest.importorskip('transformers.models.videomae.modeling_videomae')
    table = model.get_sinusoid_encoding_table(8 * 14 * 14, 24).numpy()
    np.testing.assert_allclose(sinusoid(coordinates((8, 14, 14)), 24, (8, 14, 14)), table, atol=6e-7)


@pytest.mark.parametrize(
    ('native', 'grid'), [((4, 3, 5), (7, 3, 5)), ((4, 3, 5), (4, 6, 2)), ((4, 3, 5), (3, 4, 7)), ((5,), (8,)), ((1, 4), (3, 4))]
)  # fmt: skip
def test_sinusoid_blends_the_rows_around(native, grid):
    pos = np.concatenate([coordinates(grid, native), coordinates(grid, native) * 3 - 2], 1)  # the latter reach outside
    table = transformer_table(np.prod(native), 10)
    clipped = np.clip(pos[0].astype(np.float64), 0, np.array(native) - 1)
    low = np.floor(clipped).astype(int)
    goal = np.zeros((len(low), 10))
    for corner in itertools.product((0, 1), repeat=len(native)):
        share = np.where(corner, clipped - low, 1 - (clipped - low)).prod(-1)
        at = np.minimum(low + corner, np.array(native) - 1)
        goal += share[:, None] * table[np.ravel_multi_index(tuple(at.T), native)]
    np.testing.assert_allclose(sinusoid(pos, 10, native)[0], goal, atol=2e-6)


@pytest.mark.parametrize(('native', 'grid'), [((2, 4, 3), (2, 4, 3)), ((2, 4, 3), (5, 4, 7)), ((1, 1, 4), (3, 2, 4))])
def test_separable_positions_are_a_table_of_time_plus_one_of_space(native, grid):
    width = 6
    module = Positions(width, 'separable', native)
    variables = module.init(jax.random.key(0), coordinates(native))
    assert jax.tree.map(jnp.shape, variables['params']) == dict(time=(native[0], width), space=(*native[1:], width))
    time, space = (
        jax.image.resize(variables['params'][name], (*sizes, width), 'cubic', antialias=False)
        for name, sizes in (('time', grid[:1]), ('space', grid[1:]))
    )
    goal = time.reshape(grid[0], 1, width) + space.reshape(1, -1, width)
    out = jax.jit(module.apply)(variables, coordinates(grid, native))
    np.testing.assert_allclose(out[0], goal.reshape(-1, width), atol=1e-6)


def test_wrong_options_are_named():
    pos = coordinates((2, 2))
    with pytest.raises(InputError, match='sincos'):
        Positions(8, 'rotary').init(jax.random.key(0), pos)
    with pytest.raises(InputError, match='2 sizes'):
        Positions(8, 'learned', (4,)).init(jax.random.key(0), pos)
    for kind in ('sinusoid', 'separable'):
        with pytest.raises(InputError, match=f'{kind} positions need the native grid, 2 sizes: got grid=None'):
            Positions(8, kind).init(jax.random.key(0), pos)
    with pytest.raises(InputError, match='two axes or more'):
        Positions(8, 'separable', (4,)).init(jax.random.key(0), coordinates((4,)))
