"""Which moments make a clip, against closed forms."""

import numpy as np
import pytest

from mim_jax.data.decoders import Info
from mim_jax.data.sampling import SAMPLINGS, dense, segment, still
from mim_jax.data.video import moments

RATE = 10.0


def info(count, rate=RATE):
    return Info(count / rate, rate, 48, 64)


def frames(seconds, rate=RATE):
    """The frame on screen, which each moment has to be in the middle of."""
    where = seconds * rate - 0.5
    np.testing.assert_allclose(where, np.round(where), atol=1e-6)
    return np.round(where).astype(int)


def many(sampling, count, draws=400, rate=RATE, **how):
    """i[draws * clips, frames] drawn."""
    seconds = [sampling(info(count, rate), np.random.default_rng((0, k)), **how) for k in range(draws)]
    return frames(np.concatenate(seconds), rate)


def test_dense_clips_start_wherever_they_fit():
    got = many(dense, 20, frames=4, stride=3, clips=2)
    np.testing.assert_array_equal(got - got[:, :1], [[0, 3, 6, 9]] * 800)
    counts = np.bincount(got[:, 0], minlength=20)
    assert (counts[:11] > 800 / 11 / 2).all() and not counts[11:].any()  # 0 ... 20 - 1 - 9
    assert (got[::2, 0] != got[1::2, 0]).mean() > 0.8  # clips of one record are drawn apart


def test_dense_clips_of_a_test_are_spread_evenly():
    how = dict(frames=4, stride=3)
    assert frames(dense(info(20), None, clips=1, **how)).tolist() == [[5, 8, 11, 14]]
    assert frames(dense(info(20), None, clips=3, **how))[:, 0].tolist() == [0, 5, 10]
    assert frames(dense(info(20), None, clips=5, **how))[:, 0].tolist() == [0, 2, 5, 7, 10]


@pytest.mark.parametrize('count', [1, 2, 5])
def test_a_short_video_holds_its_last_frame(count):
    want = [np.minimum(np.arange(4) * 3, count - 1).tolist()]
    for rng in (None, np.random.default_rng(0)):
        assert frames(dense(info(count), rng, frames=4, stride=3, clips=1)).tolist() == want


def test_fps_counts_in_frames_of_that_rate():
    slow, fast = (dense(info(10 * rate, rate), None, frames=4, stride=2, clips=1, fps=5.0) for rate in (10.0, 40.0))
    for seconds, rate in ((slow, 10.0), (fast, 40.0)):
        np.testing.assert_allclose(np.diff(seconds), 2 / 5)
        frames(seconds, rate)
    half = dense(
        info(100), None, frames=5, stride=1, clips=1, fps=20.0
    )  # faster than the file: each frame is shown twice
    assert len(set(frames(half).ravel())) == 3
    uneven = frames(dense(info(100), None, frames=31, stride=1, clips=1, fps=3.0))[
        0
    ]  # 10 / 3 frames of the file a step
    assert set(np.diff(uneven[:-1])) == {3, 4} and uneven[[0, -1]].tolist() == [0, 99]


def test_a_fractional_stride_is_rounded_frame_by_frame():
    got = frames(dense(info(40), None, frames=9, stride=1.5, clips=1))[0]
    assert got[-1] - got[0] == 12 and set(np.diff(got)) <= {1, 2}


def test_segments_give_one_frame_of_each_part():
    got = many(segment, 24, frames=4, stride=99, clips=2)
    for part in range(4):
        counts = np.bincount(got[:, part], minlength=24)[part * 6 : part * 6 + 6]
        assert counts.sum() == 800 and (counts > 800 / 6 / 2).all()
    assert (got[:, 1:] - got[:, :-1] != 6).any()  # each part is drawn on its own


def test_segments_of_a_test_are_fixed():
    how = dict(frames=4, stride=1)
    middle = frames(segment(info(20), None, clips=1, **how))
    assert middle.tolist() == [[2, 7, 12, 17]]
    thirds = segment(info(24), None, clips=2, **how)
    np.testing.assert_allclose(thirds * RATE - 0.5, np.round((np.arange(4) + [[1 / 3], [2 / 3]]) * 6 - 0.5))


def test_segments_of_a_video_shorter_than_the_clip():
    got = frames(segment(info(3), None, frames=6, stride=1, clips=1))[0]
    assert got[0] == 0 and got[-1] == 2 and (np.diff(got) >= 0).all() and set(got) == {0, 1, 2}


def test_a_still_is_one_frame_held():
    got = many(still, 12, frames=5, stride=2, clips=1)
    assert (got == got[:, :1]).all() and set(got[:, 0]) == set(range(12))
    assert frames(still(info(11), None, frames=5, stride=2, clips=1)).tolist() == [[5] * 5]


@pytest.mark.parametrize('name', SAMPLINGS)
@pytest.mark.parametrize('count', [1, 2, 7, 300])
def test_moments_lie_within_the_video_and_are_drawn_from_the_sample_alone(name, count):
    how = dict(sampling=name, frames=8, stride=2.5, clips=3, fps=7.0)
    for draw in (None, (0, 0), (0, 1), (1, 0)):
        got = moments(info(count), draw, **how)
        assert got.shape == (24,) and got.dtype == np.float64
        assert (got > 0).all() and (got < count / RATE).all()
        assert (np.diff(got.reshape(3, 8)) >= 0).all()
        np.testing.assert_array_equal(got, moments(info(count), draw, **how))
    if count == 300:
        assert len({tuple(moments(info(count), draw, **how)) for draw in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4
