"""Clips out of files and arrays, alone and in batches."""

import pickle
from itertools import islice

import numpy as np
import pytest

from mim_jax.data import VideoReader, batches, one_pass, open_source
from mim_jax.data.decoders import Info
from mim_jax.data.image import Unreadable
from mim_jax.data.sources.base import Video
from mim_jax.data.video import ARRAY_RATE, moments
from mim_jax.errors import InputError, RunError
from tests.data.videos import decoded, number, numbers, picture, write

CANVAS = (48, 64)


def rows(reader):
    return {key: np.zeros((reader.clips, *shape), dtype) for key, (shape, dtype) in reader.row.items()}


def clips(data, draw=None, **options):
    """(frame numbers [clips][T], sizes) of a record."""
    reader = VideoReader(**dict(canvas=CANVAS, frames=4, stride=2) | options)
    out = rows(reader)
    assert reader(data, draw, out) == ()
    (height, width), *same = out['size'].tolist()
    assert all(size == [height, width] for size in same)
    assert not out['video'][:, :, height:].any() and not out['video'][:, :, :, width:].any()
    return [numbers(clip[:, :height, :width]) for clip in out['video']], (height, width)


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    return write(tmp_path_factory.mktemp('film') / 'film.mp4', 40)


@pytest.fixture(scope='module')
def array():
    return np.stack([picture(k) for k in range(40)])


@pytest.mark.parametrize('sampling', ['dense', 'segment', 'still'])
@pytest.mark.parametrize('draw', [None, (0, 5)])
def test_files_bytes_and_arrays_give_the_frames_that_sampling_names(film, array, sampling, draw):
    how = dict(sampling=sampling, frames=4, stride=3, clips=2)
    seconds = moments(Info(40 / 25, 25.0, 48, 64), draw, **how, fps=0.0)
    want = np.floor(seconds * 25).astype(int).reshape(2, 4).tolist()
    file = np.save(npy := film.with_suffix('.npy'), array) or npy.read_bytes()
    for data in (Video(str(film)), film.read_bytes(), array, array[..., 0], file):
        assert clips(data, draw, **how) == (want, CANVAS)


def test_only_the_span_counts(film):
    assert clips(Video(str(film), 0.4, 0.8), frames=10, stride=1)[0] == [list(range(10, 20))]
    for k in range(5):
        assert set(clips(Video(str(film), 0.4, 0.8), (0, k))[0][0]) <= set(range(10, 20))


def test_frames_are_reduced_to_the_canvas_and_small_ones_left(film, array):
    for data in (Video(str(film)), array):
        assert clips(data, canvas=(24, 40))[1] == (24, 32)
        assert clips(data, canvas=(99, 80))[1] == (48, 64)


@pytest.mark.parametrize('channels', [1, 3])
def test_channels(film, array, channels):
    reader = VideoReader(canvas=CANVAS, frames=2, stride=1, channels=channels)
    assert reader.row == dict(video=((2, 48, 64, channels), 'uint8'), size=((2,), 'int32'))
    for data in (Video(str(film)), array, array[..., :1], array[..., 0]):
        out = rows(reader)
        reader(data, None, out)
        assert number(out['video'][0, 0]) == 19


def test_a_bad_record_raises(film, tmp_path):
    (tmp_path / 'text.mp4').write_text('these are words')
    for data, why in (
        (Video(str(tmp_path / 'text.mp4')), 'not a video'),
        (b'these are words', 'not a video'),
        (Video(str(film), 9.0), 'no span from 9'),
        (np.zeros((8, 8), np.uint8), r'uint8\[8, 8\]; a video has to be'),
        (np.zeros((5, 8, 8), np.float32), 'float32'),
        (np.zeros((0, 8, 8), np.uint8), r'\[0, 8, 8\]'),
        (np.zeros((5, 8, 1), np.uint8), 'smaller than data.min_side=2'),
        (np.zeros((5, 8, 8, 7), np.uint8), '7 channels'),
    ):
        with pytest.raises(Unreadable, match=why):
            clips(data)
    with pytest.raises(FileNotFoundError):
        clips(Video('nowhere.mp4'))
    with pytest.raises(Unreadable, match='smaller than data.min_side=50'):
        clips(Video(str(film)), min_side=50)


@pytest.mark.parametrize(
    'options, why',
    [
        (dict(sampling='dens'), 'sampling=dens: it has to be one of dense, segment, still'),
        (dict(backend='decord'), 'backend=decord: it has to be one of pyav'),
        (dict(dtype='uint16'), 'videos are read as uint8'),
        (dict(channels=4), 'data.channels=4'),
        (dict(frames=0), 'frames=0'),
        (dict(stride=0), 'stride=0'),
        (dict(clips=0), 'clips=0'),
        (dict(fps=-1.0), 'fps=-1'),
        (dict(timeout=0.0), 'timeout=0'),
    ],
)
def test_options_out_of_range(options, why):
    with pytest.raises(InputError, match=why):
        VideoReader(canvas=CANVAS, **options)


def test_a_reader_goes_to_other_processes():
    reader = pickle.loads(pickle.dumps(VideoReader(canvas=CANVAS, frames=3)))
    assert reader.row['video'] == ((3, 48, 64, 3), 'uint8')


# in batches


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Seven videos in two classes, one of them broken."""
    root = tmp_path_factory.mktemp('folder')
    for k in range(7):
        (root / 'ab'[k % 2]).mkdir(exist_ok=True)
        write(root / 'ab'[k % 2] / f'{k}.mp4', 12 + k, size=(32, 64), gop=4)
    (root / 'b' / '3.mp4').write_bytes(b'nothing of a video')
    return root


def reader(**options):
    return VideoReader(**dict(canvas=(32, 64), frames=2, stride=2) | options)


def rows_of(stream, count=None):
    """All rows of some batches one after another, and the bad records."""
    found = list(islice(stream, count))
    keys = found[0][0].keys()
    bad = [entry for _, report in found for entry in report.bad]
    return {key: np.concatenate([batch[key] for batch, _ in found]) for key in keys}, bad


def same(a, b):
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_depend_on_nothing_but_the_sample(folder):
    source = open_source(str(folder), media='video')
    whole, _ = rows_of(batches(source, reader(clips=2), batch_size=8, seed=1, steps=6))
    half, _ = rows_of(batches(source, reader(clips=2), batch_size=4, seed=1, steps=12))
    rest, _ = rows_of(batches(source, reader(clips=2), batch_size=8, seed=1, start=16, steps=4))
    work, _ = rows_of(batches(source, reader(clips=2), batch_size=8, seed=1, steps=6, workers=1))
    hosts = [
        rows_of(batches(source, reader(clips=2), batch_size=8, seed=1, steps=6, process_index=i, process_count=2))[0]
        for i in (0, 1)
    ]
    joined = {key: np.stack([h[key].reshape(6, 4, *h[key].shape[1:]) for h in hosts], 1) for key in whole}
    for other in (half, work, {key: x.reshape(whole[key].shape) for key, x in joined.items()}):
        same(whole, other)
    same({key: x[16:] for key, x in whole.items()}, rest)
    epochs = whole['label'].reshape(-1, 2)
    np.testing.assert_array_equal(epochs[:, 0], epochs[:, 1])


def test_epochs_and_seeds_draw_other_moments(folder):
    source = open_source(str(folder), media='video')
    drawn = [
        rows_of(batches(source, reader(stride=1), batch_size=7, seed=seed, steps=4, shuffle=False))[0]['video']
        for seed in (0, 1)
    ]
    moments = np.array(
        [[[number(clip[0]) for clip in epoch] for epoch in run.reshape(4, 7, 2, 32, 64, 3)] for run in drawn]
    )
    assert len({tuple(epoch) for epoch in moments.reshape(8, 7)}) == 8


def test_clips_of_a_record_come_from_one_decode_and_lie_side_by_side(folder, monkeypatch):
    calls = []
    run = VideoReader.__call__
    monkeypatch.setattr(VideoReader, '__call__', lambda *args: (calls.append(1), run(*args))[1])
    source = open_source(str(folder), media='video')
    rows, bad = rows_of(one_pass(source, reader(clips=3), batch_size=6))
    assert len(calls) == 7 and len(rows['valid']) == 24
    assert rows['label'].reshape(8, 3)[:, 0].tolist() == [0, 0, 0, 0, 1, -1, 1, -1]
    assert rows['valid'].reshape(8, 3).tolist() == [[ok] * 3 for ok in (1, 1, 1, 1, 1, 0, 1, 0)]
    assert not rows['video'][~rows['valid']].any() and [name for name, _ in bad] == ['b/3.mp4']
    firsts = [[number(clip[0]) for clip in record] for record in rows['video'].reshape(8, 3, 2, 32, 64, 3)]
    assert firsts[0] == [0, 4, 9]  # 12 frames: the first start, the middle one, the last


def test_a_bad_file_moves_no_other(folder):
    source = open_source(str(folder), media='video')
    rows, bad = rows_of(batches(source, reader(clips=2), batch_size=14, steps=2, shuffle=False))
    assert (~rows['valid']).sum() == 4 and [name for name, _ in bad] == ['b/3.mp4'] * 2
    assert rows['valid'].reshape(2, 7, 2).all(2).sum(0).tolist() == [2, 2, 2, 2, 2, 0, 2]
    assert all('not a video' in why for _, why in bad)


def test_clips_have_to_fit_the_hosts(folder):
    source = open_source(str(folder), media='video')
    with pytest.raises(
        InputError, match='batch_size=6 does not divide by 2 hosts x 2 clips of a record: take a multiple of 4'
    ):
        batches(source, reader(clips=2), batch_size=6, process_count=2)


def test_arrays_take_no_process(monkeypatch):
    monkeypatch.setattr('mim_jax.data.isolate.run', None)
    source = open_source('builtin:moving_digits', media='video')
    rows, bad = rows_of(batches(source, VideoReader(canvas=(64, 64), stride=1), batch_size=8, steps=2))
    assert rows['valid'].all() and not bad and rows['video'].shape == (16, 16, 64, 64, 3)
    assert ARRAY_RATE == 25.0


def test_no_process_for_decoding_is_no_records_fault(folder, monkeypatch):
    def run(*args, **options):
        raise RunError('no process for decoding can be started')

    monkeypatch.setattr('mim_jax.data.isolate.run', run)
    with pytest.raises(RunError, match='no process for decoding can be started'):
        rows_of(one_pass(open_source(str(folder), media='video'), reader(), batch_size=7))


def test_decoded_pixels_are_those_of_a_plain_decode(film):
    out = rows(how := VideoReader(canvas=CANVAS, frames=40, stride=1))
    how(Video(str(film)), None, out)
    assert np.abs(out['video'][0] - np.stack(decoded(film)[1]).astype(float)).mean() < 3
