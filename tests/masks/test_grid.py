import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mim_jax import masks

DRAWS = 10_000


@pytest.mark.parametrize(
    ('draw', 'grid', 'hidden'),
    [
        (lambda k, g: masks.random(k, g, ratio=0.75), (4, 14, 14), 147),
        (lambda k, g: masks.random(k, g, ratio=0.9), (2, 5, 3, 7), 95),
        (lambda k, g: masks.block(k, g, ratio=0.4), (4, 14, 14), 79),
        (lambda k, g: masks.block(k, g, ratio=0.75), (3, 4, 4), 12),
        (lambda k, g: masks.grid(k, g, stride=2), (4, 6, 8), 36),
    ],
)
@pytest.mark.parametrize('rows', [False, True])
def test_counts_are_exact_and_the_parts_agree(draw, grid, hidden, rows):
    key = jax.random.key(0)
    mask = jax.jit(draw, static_argnums=1)(jax.random.split(key, grid[0]) if rows else key, grid)
    n = int(np.prod(grid[1:]))
    assert mask.hidden.shape == (grid[0], n) and mask.num_visible == n - hidden
    np.testing.assert_array_equal(mask.hidden.sum(-1), hidden)
    for row in range(grid[0]):
        np.testing.assert_array_equal(mask.target[row], np.flatnonzero(mask.hidden[row]))
        np.testing.assert_array_equal(mask.visible[row], np.flatnonzero(~mask.hidden[row]))
    np.testing.assert_array_equal(mask.weight, 1)
    assert not (mask.hidden[0] == mask.hidden[1]).all() or grid[0] == 2


def test_random_hides_every_token_equally_often():
    mask = jax.jit(lambda k: masks.random(k, (DRAWS, 4, 4), ratio=0.75))(jax.random.key(1))
    rate = np.asarray(mask.hidden).mean(0)
    assert abs(rate - 0.75).max() < 5 * (0.75 * 0.25 / DRAWS) ** 0.5
    pairs = np.asarray(mask.hidden[:, 0] & mask.hidden[:, 5]).mean()  # without replacement: 12/16 * 11/15
    assert abs(pairs - 12 / 16 * 11 / 15) < 5 * (0.25 / DRAWS) ** 0.5


def test_block_hides_rectangles():
    hidden = np.asarray(jax.jit(lambda k: masks.block(k, (500, 14, 14), ratio=0.4).hidden)(jax.random.key(2))).reshape(
        -1, 14, 14
    )
    neighbours = (hidden[:, 1:] == hidden[:, :-1]).mean()
    scattered = np.asarray(masks.random(jax.random.key(2), (500, 14, 14), ratio=0.4).hidden).reshape(-1, 14, 14)
    assert neighbours > 0.85 > 0.6 > (scattered[:, 1:] == scattered[:, :-1]).mean()
    rate = hidden.mean(0)
    assert rate.min() > 0.02 and rate.max() < 0.9  # corners are rarer


def test_block_with_a_leading_axis_masks_each_frame():
    mask = masks.block(jax.random.key(0), (2, 3, 6, 6), ratio=0.5)
    np.testing.assert_array_equal(mask.hidden.sum(-1), 54)


def test_grid_keeps_a_regular_lattice():
    mask = masks.grid(jax.random.key(4), (64, 6, 6), stride=3)
    kept = ~np.asarray(mask.hidden).reshape(-1, 2, 3, 2, 3)
    cells = kept.transpose(0, 1, 3, 2, 4).reshape(64, 4, 9)
    np.testing.assert_array_equal(cells.sum(-1), 1)
    assert (cells == cells[:, :1]).all() and len(np.unique(cells[:, 0].argmax(-1))) == 9


@pytest.mark.parametrize(
    ('draw', 'says'),
    [
        (lambda k: masks.random(k, (1, 2, 2), ratio=1.0), 'hides 4 of 4'),
        (lambda k: masks.random(k, (1, 2, 2), ratio=0.0), 'hides 0 of 4'),
        (lambda k: masks.block(k, (1, 8), ratio=0.5), 'two axes'),
        (lambda k: masks.grid(k, (1, 5, 4)), 'does not divide'),
    ],
)
def test_impossible_masks_say_so(draw, says):
    with pytest.raises(ValueError, match=says):
        draw(jax.random.key(0))


def test_draws_depend_on_the_key_alone():
    a, b = (masks.random(jax.random.key(s), (2, 8, 8), ratio=0.5).hidden for s in (0, 0))
    assert jnp.array_equal(a, b) and not jnp.array_equal(
        a, masks.random(jax.random.key(1), (2, 8, 8), ratio=0.5).hidden
    )


def test_nothing_hides_nothing_and_asks_for_all():
    mask = masks.nothing(jax.random.key(0), (2, 3, 4))
    assert not mask.hidden.any() and mask.num_visible == 12
    for positions in (mask.visible, mask.target):
        np.testing.assert_array_equal(positions, np.tile(np.arange(12), (2, 1)))


def test_varying_hides_a_cut_normal_share():
    mask = jax.jit(lambda key: masks.varying(key, (20_000, 5, 8), low=0.7))(jax.random.key(3))
    share = np.asarray(mask.hidden).mean(1)
    assert share.min() == 29 / 40 and share.max() == 1.0 and mask.most_visible == 12 and mask.num_visible is None
    draws = stats.truncnorm((0.7 - 1) / 0.25, 0, loc=1, scale=0.25).rvs(200_000, random_state=0)
    expected = np.ceil(40 * draws) / 40
    np.testing.assert_allclose(share.mean(), expected.mean(), atol=5 * expected.std() / 20_000**0.5)
    np.testing.assert_allclose(share.std(), expected.std(), rtol=0.03)
    np.testing.assert_array_equal(mask.weight, mask.hidden)
    for row in range(8):
        seen = np.flatnonzero(~mask.hidden[row])
        np.testing.assert_array_equal(mask.visible[row][mask.filled[row]], seen)
        assert mask.filled[row].sum() == len(seen)


@pytest.mark.parametrize('low', [0.0, 1.2])
def test_varying_refuses_a_share_that_is_none(low):
    with pytest.raises(ValueError, match='is no share of the tokens'):
        masks.varying(jax.random.key(0), (2, 4, 4), low=low)
