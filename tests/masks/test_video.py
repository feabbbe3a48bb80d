"""Properties of masks over space and time, over ten thousand draws."""

import jax
import numpy as np
import pytest

from mim_jax import masks

DRAWS = 10_000
GRID = (DRAWS, 6, 4, 4)
HIDDEN = 12  # of the 16 places of a frame, at ratio 0.75
SIX_SIGMA = 6 * (0.25 / DRAWS) ** 0.5


def draw(name, grid, rows=False, seed=0, **options):
    """A mask with NumPy leaves, from one key or a key per row."""
    key = jax.random.key(seed)
    mask = getattr(masks, name)
    return jax.device_get(
        jax.jit(lambda key: mask(key, grid, **options))(jax.random.split(key, grid[0]) if rows else key)
    )


def asked(mask):
    """bool[B, N] of `target`."""
    every = np.zeros(mask.hidden.shape, bool)
    np.put_along_axis(every, np.asarray(mask.target), True, axis=1)
    return every


def running_cells(frames, h, w, skipped):
    """bool[4, T, H, W], where the decoder of VideoMAE V2 is asked, for each start: a queue rolled frame by frame."""
    queue = np.array([False] * skipped + [True] * (4 - skipped))
    return np.stack([
        [np.tile(np.roll(queue, -(start + t + 1)).reshape(2, 2), (-(-h // 2), -(-w // 2)))[:h, :w] for t in range(frames)]
        for start in range(4)
    ])  # fmt: skip


@pytest.mark.parametrize('rows', [False, True])
def test_tubes_hide_one_plane_in_every_frame(rows):
    mask = draw('tube', GRID, rows, ratio=0.75)
    hidden = mask.hidden.reshape(GRID)
    assert (hidden == hidden[:, :1]).all()
    assert (hidden[:, 0].sum((-1, -2)) == HIDDEN).all() and mask.num_visible == 6 * (16 - HIDDEN)
    np.testing.assert_array_equal(mask.target, np.nonzero(mask.hidden)[1].reshape(DRAWS, -1))
    assert (mask.weight == 1).all()
    assert abs(mask.hidden.mean(0) - 0.75).max() < SIX_SIGMA
    both = (hidden[:, 0, 0, 0] & hidden[:, 0, 2, 1]).mean()  # without replacement
    assert abs(both - 12 / 16 * 11 / 15) < SIX_SIGMA


def test_tubes_round_the_hidden_count_down():
    assert draw('tube', (2, 8, 14, 14), ratio=0.9).num_visible == 8 * 20  # the 160 visible tokens of VideoMAE
    assert draw('tube', (2, 8, 16, 16), ratio=0.9).num_visible == 8 * 26
    assert draw('tube', (2, 3, 10, 10), ratio=0.29).num_visible == 3 * 71  # 100 * 0.29 is 28.999... in floating point


@pytest.mark.parametrize('rows', [False, True])
@pytest.mark.parametrize('skipped', [1, 2, 3])
def test_the_running_cell_is_the_published_one(rows, skipped):
    mask = draw('running_cell', GRID, rows, ratio=0.75, decoder_ratio=skipped / 4)
    np.testing.assert_array_equal(mask.hidden, draw('tube', GRID, rows, ratio=0.75).hidden)
    assert (np.diff(mask.target, axis=1) > 0).all()
    every = asked(mask)
    assert (every.reshape(*GRID[:2], 16).sum(-1) == 4 * (4 - skipped)).all()
    published = running_cells(*GRID[1:], skipped).reshape(4, -1)
    starts = (every[:, None] == published).all(-1)  # bool[B, 4]
    assert (starts.sum(-1) == 1).all()
    assert abs(starts.mean(0) - 0.25).max() < SIX_SIGMA
    assert abs(every.mean(0) - (1 - skipped / 4)).max() < SIX_SIGMA
    np.testing.assert_array_equal(mask.weight, np.take_along_axis(mask.hidden, mask.target, 1))
    assert mask.weight.dtype == np.float32


def test_every_position_is_asked_equally_often_by_the_loss():
    mask = draw('running_cell', GRID, ratio=0.75)
    counted = asked(mask) & mask.hidden
    assert abs(counted.mean(0) - 0.5 * 0.75).max() < SIX_SIGMA  # the cell does not depend on the tube


@pytest.mark.parametrize('plane', [(3, 4), (5, 3)])
def test_odd_frames_are_asked_as_often_over_four_frames(plane):
    mask = draw('running_cell', (64, 8, *plane), ratio=0.5)
    every = asked(mask)
    assert mask.target.shape[1] == 4 * np.prod(plane) and (every.sum(-1) == mask.target.shape[1]).all()
    assert (every[:, None] == running_cells(8, *plane, 2).reshape(4, -1)).all(-1).any(-1).all()
    assert (every.reshape(64, 8, -1).sum(1) == 4).all()


def test_random_over_space_and_time_is_agnostic_of_both():
    mask = draw('random', GRID, ratio=0.9)
    hidden = mask.hidden.reshape(GRID)
    assert (mask.hidden.sum(-1) == 87).all() and mask.num_visible == int(96 * 0.1)
    assert abs(mask.hidden.mean(0) - 87 / 96).max() < SIX_SIGMA
    for other in (hidden[:, 1, 0, 0], hidden[:, 0, 0, 1]):  # no more alike along time than along space
        assert abs((hidden[:, 0, 0, 0] & other).mean() - 87 / 96 * 86 / 95) < SIX_SIGMA


@pytest.mark.parametrize(
    ('name', 'options'), [('tube', {}), ('running_cell', {}), ('running_cell', dict(decoder_ratio=0.25))]
)
def test_a_row_depends_on_its_key_alone(name, options):
    draw_rows = jax.jit(lambda keys: getattr(masks, name)(keys, (len(keys), 4, 4, 4), ratio=0.5, **options))
    keys = jax.random.split(jax.random.key(3), 8)
    jax.tree.map(
        lambda whole, part: np.testing.assert_array_equal(whole[2:5], part), draw_rows(keys), draw_rows(keys[2:5])
    )


@pytest.mark.parametrize(
    ('name', 'grid', 'options', 'says'),
    [
        ('tube', (1, 8), dict(ratio=0.5), 'time and space'),
        ('tube', (1, 2, 2, 2), dict(ratio=0.1), 'hides 0 of 4'),
        ('running_cell', (1, 4, 4), dict(ratio=0.5), 'time, height and width'),
        ('running_cell', (1, 4, 4, 4), dict(ratio=1.0), 'hides 16 of 16'),
        ('running_cell', (1, 4, 4, 4), dict(ratio=0.5, decoder_ratio=0.6), '1/4, 1/2 or 3/4'),
        ('running_cell', (1, 4, 4, 4), dict(ratio=0.5, decoder_ratio=0), 'use tube'),
        ('running_cell', (1, 6, 7, 8), dict(ratio=0.5), '7x8 frame does not divide.*multiple of 4, not 6'),
    ],
)
def test_impossible_masks_say_so(name, grid, options, says):
    with pytest.raises(ValueError, match=says):
        getattr(masks, name)(jax.random.key(0), grid, **options)
