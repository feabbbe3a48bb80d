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


def multiblocks(rows=300, plane=(14, 14), **options):
    """A mask, and its rectangles as bool[rows, 4, h, w]."""
    mask = jax.device_get(jax.jit(lambda key: masks.multiblock(key, (rows, *plane), **options))(jax.random.key(4)))
    inside = np.zeros((rows, 4, plane[0] * plane[1]), bool)
    for row, target, asked in zip(
        inside, mask.target.reshape(rows, 4, -1), mask.asked.reshape(rows, 4, -1), strict=True
    ):
        for block, at, real in zip(row, target, asked, strict=True):
            block[at[real]] = True
            assert block.sum() == real.sum() and (np.diff(at[real]) > 0).all()
    return mask, inside.reshape(rows, 4, *plane)


@pytest.mark.parametrize('plane', [(14, 14), (16, 16), (8, 8), (6, 12)])
def test_multiblock_asks_for_rectangles_and_shows_none_of_them(form, plane):
    mask, inside = multiblocks(plane=plane)
    n = plane[0] * plane[1]
    for block in inside.reshape(-1, *plane):
        rows, columns = (np.flatnonzero(block.any(axis)) for axis in (1, 0))
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert tall * wide == block.sum()
        # some share and shape within the bounds round to these sides
        assert (tall - 0.5) * (wide - 0.5) <= 0.2 * n * 1.0001 and (tall + 0.5) * (wide + 0.5) >= 0.15 * n * 0.9999
        assert (tall + 0.5) / (wide - 0.5) >= 0.75 and (tall - 0.5) / (wide + 0.5) <= 1.5
    assert not (inside.any(1).reshape(-1, n) & ~mask.hidden).any()
    np.testing.assert_array_equal(mask.weight, mask.asked)
    visible = (~mask.hidden).sum(1)
    assert (
        mask.groups == 4
        and mask.most_visible == int(0.28 * n) == visible.max()
        and (visible == visible.max()).mean() > 0.9
    )
    np.testing.assert_array_equal(mask.filled.sum(1), visible)
    assert len(mask.target[0]) == 4 * max(block.sum() for block in inside.reshape(-1, *plane)) or plane != (14, 14)


def test_multiblock_draws_by_the_law_of_its_paper():
    """How often each token is asked for and seen, beside the same draws in NumPy; sides of 14 tokens."""
    rows = 4000
    mask, inside = multiblocks(rows, keep=0.99)
    rng = np.random.default_rng(0)

    def draw(share, shape, count):  # bool[rows, count, 14, 14]
        share, shape = rng.uniform(*share, (rows, count)), rng.uniform(*shape, (rows, count))
        sides = [np.round(np.sqrt(196 * share * shape)), np.round(np.sqrt(196 * share / shape))]
        within = []
        for side in sides:
            low = rng.integers(0, 14 - side.astype(int) + 1)
            within.append((np.arange(14) >= low[..., None]) & (np.arange(14) < (low + side)[..., None]))
        return within[0][..., None] & within[1][..., None, :]

    blocks = draw((0.15, 0.2), (0.75, 1.5), 4)
    seen = draw((0.85, 1.0), (1.0, 1.0), 1)[:, 0] & ~blocks.any(1)
    seen = seen[seen.sum((1, 2)) >= 10]
    limit = 5 * np.sqrt(0.5 / rows)
    assert np.abs(inside.any(1).mean(0) - blocks.any(1).mean(0)).max() < limit
    assert np.abs((~mask.hidden).reshape(rows, 14, 14).mean(0) - seen.mean(0)).max() < limit
    for statistic in (lambda x: x.sum((2, 3)), lambda x: x.any(3).sum(2)):  # areas, heights
        counts = [np.bincount(statistic(x).astype(int).ravel(), minlength=60) / (4 * rows) for x in (inside, blocks)]
        assert np.abs(counts[0] - counts[1]).max() < limit
    assert inside[..., -1].any() and inside[..., -1, :].any()


def test_multiblock_shows_a_part_of_what_it_would_ask_for_where_too_little_were_left():
    mask, inside = multiblocks(scale=(0.4, 0.5), least=40, keep=0.5)
    visible = ~mask.hidden
    assert visible.sum(1).min() >= 40
    taken = np.take_along_axis(visible, mask.target, 1)
    assert (taken & mask.asked).any()
    np.testing.assert_array_equal(mask.weight, mask.asked & ~taken)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(plane=(4, 4, 4)), 'height and width'),
        (dict(scale=(0.5, 0.2)), 'scale=.*the lower first'),
        (dict(aspect=(0, 2)), 'aspect=.*above 0'),
        (dict(scale=(0.15,)), 'two numbers'),
        (dict(keep=0.0), 'keep'),
        (dict(blocks=0), 'blocks=0'),
        (dict(context=(0.8, 1.2)), 'at most 1'),
    ],
)
def test_multiblock_says_what_it_cannot_do(options, words):
    with pytest.raises(ValueError, match=words):
        masks.multiblock(jax.random.key(0), (2, *options.pop('plane', (8, 8))), **options)
