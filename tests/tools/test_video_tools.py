"""Looking at videos and packing them."""

import json
import re
import shutil
from io import BytesIO

import av
import numpy as np
import pytest

from mim_jax.data import VideoReader, one_pass, open_source, open_splits
from mim_jax.data.image import Unreadable
from mim_jax.data.sources.base import Video
from mim_jax.errors import InputError
from mim_jax.tools import check as checker
from mim_jax.tools import pack as packer
from mim_jax.tools import videos
from mim_jax.tools.check import check, overrides, text
from tests.data.hostile import REASONS, hostile
from tests.data.videos import numbers, picture, write

SIZE = (32, 64)


@pytest.fixture
def classes(tmp_path):
    """Five videos in two classes."""
    for k in range(5):
        path = tmp_path / 'src' / 'ab'[k % 2] / f'{k}.mp4'
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, 20 + 5 * k, size=SIZE)
    return tmp_path / 'src'


@pytest.fixture(scope='module')
def bad(tmp_path_factory):
    return hostile(tmp_path_factory.mktemp('videos') / 'bad')


def assert_reasons(entries):
    found = {entry['name']: entry['reason'] for entry in entries}
    assert found.keys() == REASONS.keys()
    for name, why in REASONS.items():
        assert re.search(why, found[name]), found[name]


# check


def test_counts_rates_durations_and_codecs(classes):
    write(classes / 'a' / 'old.avi', 30, size=(64, 48), codec='mpeg4', bframes=0)
    report = check(str(classes), workers=2)
    assert (report['media'], report['records'], report['readable'], report['unreadable']) == ('video', 6, 6, [])
    assert report['modes'] == dict(h264=5, mpeg4=1) and report['classes'] == dict(a=4, b=2)
    assert report['frames'] == dict(min=20, median=30, max=40)
    assert report['rate'] == dict(min=25, median=25, max=25)
    assert report['duration'] == dict(min=0.8, median=1.2, max=1.6)
    assert report['height'] == dict(min=32, median=32, max=64) and report['width']['min'] == 48
    assert {line.split()[0] for line in text(report).splitlines() if line} >= {
        'frames',
        'codecs',
        'frames/second',
        'seconds',
    }


def test_statistics_are_those_of_numpy(tmp_path):
    films = np.random.default_rng(0).integers(0, 200, (4, checker.LOOKED, 12, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / 'x.npz', videos=films)
    report = check(str(tmp_path / 'x.npz'))
    np.testing.assert_allclose(report['mean'], films.mean((0, 1, 2, 3)) / 255, rtol=1e-3)
    np.testing.assert_allclose(report['std'], films.std((0, 1, 2, 3)) / 255, rtol=1e-3)
    assert report['frames']['max'] == checker.LOOKED and report['config']['channels'] == 3
    assert check('builtin:moving_digits', limit=20)['config']['channels'] == 1


def test_means_of_files(tmp_path):
    write(tmp_path / '1.mp4', 10, size=SIZE)
    want = np.stack([picture(k, SIZE) for k in (0, 2, 4, 7, 9)]).mean() / 255
    assert check(str(tmp_path))['mean'] == pytest.approx([want] * 3, abs=0.01)


def test_bad_videos_are_told_with_their_reasons(bad):
    report = check(str(bad), workers=2, timeout=2.0)
    assert (report['records'], report['readable']) == (10, 2)
    assert_reasons(report['unreadable'])


def test_the_overrides_are_keys_of_a_config_of_videos(classes):
    from configs.videomae import get_config

    config = check(str(classes))['config']
    known = get_config('tiny')
    known.update_from_flattened_dict({f'data.{key}': value for key, value in config.items()})
    for key, value in config.items():
        assert f'--config.data.{key}=' in overrides(config)
        node = known.data
        for name in key.split('.')[:-1]:
            node = node[name]
        assert type(node[key.split('.')[-1]]) is type(value)
    reader = {key.removeprefix('reader.'): value for key, value in config.items() if key.startswith('reader.')}
    assert VideoReader(canvas=config['canvas'], **reader).row['video'][0] == (16, *config['canvas'], 3)


@pytest.mark.parametrize(
    'rates, seconds, stride, fps',
    [
        ([25] * 9, [10] * 9, 4, 0.0),
        ([12] * 9, [4] * 9, 3, 0.0),
        ([5] * 9, [1] * 9, 1, 0.0),
        ([24, 25, 60] * 3, [9] * 9, 4, 25.0),
    ],
)
def test_clips_that_most_videos_can_fill(rates, seconds, stride, fps):
    config = checker._clips(np.array(rates, float), np.array(seconds, float))
    assert (config['reader.stride'], config['reader.fps'], config['eval_reader.stride']) == (stride, fps, stride)


def test_nothing_readable(tmp_path, capsys):
    (tmp_path / 'a.mp4').write_text('no')
    assert checker.main([str(tmp_path)]) == 2
    assert 'no readable record' in capsys.readouterr().err


def test_what_was_seen_lasts(tmp_path):
    """Though the memory it came in belongs to the next call."""
    seen = []
    for k in (1, 9):
        write(tmp_path / f'{k}.mp4', k + 1, size=SIZE)
        seen.append(videos.look(Video(str(tmp_path / f'{k}.mp4')), channels=0, frames=2, side=64, timeout=20.0))
    assert (seen[0].info.duration, seen[1].info.duration) == (2 / 25, 10 / 25)
    assert (seen[0].moments != seen[1].moments).all()


# pack


def test_files_go_in_as_they_are(classes, tmp_path):
    assert packer.main([str(classes), str(tmp_path / 'dst'), '--shards', '2']) == 0
    source, packed = (open_source(str(path), media='video') for path in (classes, tmp_path / 'dst'))
    assert len(packed) == 5 and packed.class_names == ['a', 'b']
    for i in range(5):
        with open(source[i].data.file, 'rb') as file:
            assert tuple(packed[i]) == (source[i].name, file.read(), source[i].label)
    index = json.loads((tmp_path / 'dst' / 'index.json').read_text())
    assert (index['media'], index['count'], index['skipped']) == ('video', 5, [])
    reader = VideoReader(canvas=SIZE, frames=4, stride=2)
    for (a, _), (b, report) in zip(*(one_pass(s, reader, batch_size=5) for s in (source, packed)), strict=True):
        assert not report.bad
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    with pytest.raises(InputError, match='holds packed videos, but the config is one of images'):
        open_source(str(tmp_path / 'dst'))


def test_smaller_slower_and_with_key_frames(classes, tmp_path):
    how = ['--short-side', '16', '--fps', '12.5', '--keyframes', '4', '--crf', '10']
    assert packer.main([str(classes), str(tmp_path / 'dst'), *how]) == 0
    packed = open_source(str(tmp_path / 'dst'), media='video')
    for i, count in enumerate((10, 15, 20, 13, 18)):
        with av.open(BytesIO(packed[i].data)) as container:
            packets = [p for p in container.demux(video=0) if p.size]
            assert container.streams.video[0].height == 16 and abs(len(packets) - count) <= 1
            assert [k for k, p in enumerate(packets) if p.is_keyframe] == list(range(0, len(packets), 4))


def test_spans_are_cut_out_and_splits_kept(tmp_path):
    write(tmp_path / 'long.mp4', 50, size=(48, 64))
    (tmp_path / 'l.csv').write_text(
        'file,label,split,start,end\nlong.mp4,0,train,0.4,0.8\nlong.mp4,1,test,1,1.6\nlong.mp4,1,test,,\n'
    )
    assert packer.main([str(tmp_path / 'l.csv'), str(tmp_path / 'dst')]) == 0
    train, val = open_splits(str(tmp_path / 'dst'), media='video')
    reader = VideoReader(canvas=(48, 64), frames=10, stride=1)
    out = {key: np.zeros((1, *shape), dtype) for key, (shape, dtype) in reader.row.items()}
    assert (len(train), len(val), train[0].name, train[0].label) == (1, 2, 'long.mp4@0.4-0.8', 0)
    reader(train[0].data, None, out)
    assert numbers(out['video'][0]) == list(range(10, 20))
    assert val[1].data == (tmp_path / 'long.mp4').read_bytes()


def test_arrays_stay_arrays(tmp_path, capsys):
    films = np.random.default_rng(0).integers(0, 255, (3, 6, 16, 24, 3)).astype(np.uint8)
    np.savez(tmp_path / 'v.npz', video=films, label=[0, 1, 0])
    assert packer.main([str(tmp_path / 'v.npz'), str(tmp_path / 'dst')]) == 0
    packed = open_source(str(tmp_path / 'dst'), media='video')
    np.testing.assert_array_equal(np.load(BytesIO(packed[1].data)), films[1])
    assert packer.main([str(tmp_path / 'v.npz'), str(tmp_path / 'small'), '--short-side', '8', '--media', 'video']) == 0
    assert np.load(BytesIO(open_source(str(tmp_path / 'small'), media='video')[2].data)).shape == (6, 8, 12, 3)
    assert packer.main([str(tmp_path / 'v.npz'), str(tmp_path / 'no'), '--fps', '5', '--media', 'video']) == 2
    assert 'are for video files; arrays of frames stay arrays' in capsys.readouterr().err


@pytest.mark.parametrize('how', [[], ['--short-side', '16']])
def test_bad_videos_are_left_out_and_listed(bad, tmp_path, how):
    assert packer.main([str(bad), str(tmp_path / 'dst'), '--timeout', '2', '--workers', '2', *how]) == 0
    index = json.loads((tmp_path / 'dst' / 'index.json').read_text())
    assert index['count'] == 2
    assert_reasons(index['skipped'])


def test_packed_videos_are_packed_again(classes, tmp_path):
    assert packer.main([str(classes), str(tmp_path / 'one')]) == 0
    assert packer.main([str(tmp_path / 'one'), str(tmp_path / 'two'), '--short-side', '16']) == 0
    one, two = (open_source(str(tmp_path / name), media='video') for name in ('one', 'two'))
    assert [one[i].name for i in range(5)] == [two[i].name for i in range(5)]
    for i in range(5):
        with av.open(BytesIO(two[i].data)) as container:
            assert container.streams.video[0].height == 16


@pytest.mark.parametrize(
    'how, why',
    [
        (['--quality', '80'], '--quality is for images, but .* holds videos'),
        (['--format', 'png'], '--format is for images'),
        (['--fps', '-3'], '--fps=-3.0 has to be above 0'),
        (['--timeout', '0'], '--timeout=0.0 has to be above 0'),
        (['--media', 'image'], 'no image file in'),
        (['--media', 'image', '--crf', '3'], '--crf is for videos, but .* holds images'),
    ],
)
def test_options_that_do_not_fit(classes, tmp_path, capsys, how, why):
    assert packer.main([str(classes), str(tmp_path / 'dst'), *how]) == 2
    assert re.search(why, capsys.readouterr().err)
    assert not (tmp_path / 'dst').exists()


def test_what_cannot_be_decoded_again_is_noticed(classes, tmp_path, capsys, monkeypatch):
    def fail(data, timeout):
        raise Unreadable('cut off')

    monkeypatch.setattr(videos, 'first_frame', fail)
    assert packer.main([str(classes), str(tmp_path / 'dst')]) == 1
    assert 'record 0 (a/0.mp4) cannot be decoded again: cut off' in capsys.readouterr().err
    assert not (tmp_path / 'dst').exists()


def test_no_more_in_memory_than_the_threads_need():
    from concurrent.futures import ThreadPoolExecutor

    begun = []
    with ThreadPoolExecutor(2) as pool:
        stream = packer._in_order(pool, lambda row: (begun.append(row), row)[1], range(100), 5)
        for k, row in enumerate(stream):
            assert row == k and len(begun) <= k + 5
    assert sorted(begun) == list(range(100))


def test_a_copy_is_left_alone(classes, tmp_path):
    """A file that is only looked at is not read into memory by the decoder."""
    shutil.copy(classes / 'a' / '0.mp4', tmp_path / 'x.mp4')
    data = videos.repack(Video(str(tmp_path / 'x.mp4')), timeout=20.0)
    assert data == (tmp_path / 'x.mp4').read_bytes()
    assert videos.repack(data, timeout=20.0) is data
