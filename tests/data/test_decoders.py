"""Frames by time, against a plain decode of the whole file."""

import sys
from io import BytesIO

import av
import numpy as np
import pytest

from mim_jax.data import player
from mim_jax.data.decoders import encode, read
from mim_jax.data.image import Unreadable, fit
from mim_jax.data.sources.base import Video
from mim_jax.errors import InputError
from tests.data import videos
from tests.data.videos import cut, decoded, number, numbers, write, write_sound

CANVAS = (64, 64)
rng = np.random.default_rng(0)


def frames_at(file, times, canvas=CANVAS, **how):
    span = how.pop('span', (0.0, None))
    return read(Video(str(file), *span), lambda info: np.asarray(times, float), canvas, **how)[0]


def all_times(info):
    """The middle of every frame of a file of 25 frames per second."""
    return (np.arange(round(info.duration * 25)) + 0.5) / 25


def shown(seconds, times):
    """Which frame is on screen, by the definition."""
    return [max(k for k, s in enumerate(seconds) if s <= t + 1e-3) for t in times]


KINDS = {
    'mp4': {},
    'mp4 without B-frames': dict(bframes=0),
    'mp4 with sound': dict(sound=1.5),
    'mp4 in fragments': dict(movflags='frag_keyframe+empty_moov'),
    'mp4 index first': dict(movflags='faststart'),
    'mp4 of variable rate': dict(times=np.cumsum(rng.uniform(0.01, 0.2, 40)) - 0.005),
    'mp4 that starts late': dict(start=3.0),
    'mp4 of odd size': dict(size=(53, 75)),
    'mov': {},
    'mkv': {},
    'mkv with sound': dict(sound=3.0),
    'mkv of variable rate': dict(times=np.cumsum(rng.uniform(0.01, 0.2, 40))),
    'ts': {},
    'ts with sound': dict(sound=1.5),
    'flv': {},
    'webm': dict(codec='libvpx', bframes=0),
    'webm without duration': dict(codec='libvpx', bframes=0, live='1', sound=1.0),
    'avi': dict(codec='mpeg4', bframes=0),
}


@pytest.mark.parametrize('kind', KINDS)
def test_frames_on_screen_at_any_time(tmp_path, kind):
    file = write(tmp_path / f'v.{kind.split()[0]}', **KINDS[kind])
    seconds, pictures = decoded(file)
    times = rng.uniform(0, seconds[-1] + 0.02, 25)
    want = shown(seconds, times)
    size = fit(*pictures[0].shape[:2], CANVAS)
    for source in (str(file), file.read_bytes()):
        frames, info = read(Video(source), lambda info: times, CANVAS)
        assert numbers(frames) == [number(pictures[k]) for k in want]
        assert frames.shape == (25, *size, 3) and (info.height, info.width) == pictures[0].shape[:2]
        if size == pictures[0].shape[:2]:
            assert np.abs(frames - np.stack([pictures[k] for k in want]).astype(float)).mean() < 3
        assert seconds[-1] - 0.2 * ('variable' in kind) < info.duration <= seconds[-1] + 0.25
        assert info.rate == pytest.approx(len(seconds) / info.duration, rel=0.1) or 'variable' in kind


@pytest.mark.parametrize('name', ['v.h264', 'v.avi'])
def test_without_timestamps_frames_are_counted(tmp_path, name):
    file = write(tmp_path / name, 30)
    frames, info = read(Video(str(file)), all_times, CANVAS)
    assert info.duration == pytest.approx(1.2) and info.rate == pytest.approx(25)
    assert numbers(frames) == list(range(30))


def test_any_order_and_repeats(tmp_path):
    file = write(tmp_path / 'v.mp4')
    order = rng.permutation(30).tolist() * 2
    assert numbers(frames_at(file, [k / 25 for k in order])) == order
    assert frames_at(file, []).shape == (0, 48, 64, 3)


def test_times_before_and_after_are_the_first_and_last_frame(tmp_path):
    file = write(tmp_path / 'v.mp4')
    assert numbers(frames_at(file, [-1, 0, 1.19, 1.2, 1.3, 50])) == [0, 0, 29, 29, 29, 29]


def test_a_long_last_frame_is_held(tmp_path):
    file = write(tmp_path / 'v.mkv', times=[0, 0.1, 0.2], sound=4.0)
    assert numbers(frames_at(file, [0.15, 3.9])) == [1, 2]


@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'ts'])
def test_jumps_give_the_frames_of_a_decode_without_them(tmp_path, monkeypatch, suffix):
    file = write(tmp_path / f'v.{suffix}', 250, gop=25)
    monkeypatch.setattr(player, '_AHEAD', 1.5)
    jumps = []
    jump = player.PyAV._jump
    monkeypatch.setattr(player.PyAV, '_jump', lambda self, time: (jumps.append(time), jump(self, time)))
    wanted = [3, 30, 99, 100, 101, 170, 249]
    assert numbers(frames_at(file, [k / 25 for k in wanted])) == wanted
    assert len(jumps) >= 2


def test_a_jump_that_lands_too_late_decodes_from_the_beginning(tmp_path, monkeypatch):
    file = write(tmp_path / 'v.mp4', 150, gop=25, start=1.0)
    seek = player.av.container.InputContainer.seek

    class Late:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def seek(self, ticks, stream):
            return seek(self.container, ticks + 3 * CLOCKS, stream=stream)

    CLOCKS = videos.CLOCK
    opened = []
    open_ = player._open
    monkeypatch.setattr(player, '_open', lambda file: opened.append(file) or Late(open_(file)))
    assert numbers(frames_at(file, [0, 2.0, 4.0])) == [0, 50, 100]
    assert len(opened) == 2


@pytest.mark.parametrize('angle', [90, 180, -90])
def test_turned_as_the_phone_was(tmp_path, angle):
    file = write(tmp_path / 'v.mp4', size=(48, 80), rotation=angle)
    frames, info = read(Video(str(file)), lambda info: np.array([0.5]), (80, 80))
    want = np.rot90(decoded(file)[1][12], angle // 90)
    assert (info.height, info.width) == want.shape[:2] == frames.shape[1:3]
    assert np.abs(frames[0] - want.astype(float)).mean() < 3


def test_mirrored_display_matrix(tmp_path):
    file = write(tmp_path / 'v.mp4', rotation=180)
    data = file.read_bytes()
    matrix = data.index(b'\xff\xff\x00\x00', data.index(b'tkhd'))  # a = d = -1; only a stays so
    mirrored = data[: matrix + 16] + b'\x00\x01\x00\x00' + data[matrix + 20 :]
    frames, _ = read(Video(mirrored), lambda info: np.array([0.5]), CANVAS)
    assert np.abs(frames[0] - decoded(file)[1][12][:, ::-1].astype(float)).mean() < 3


def test_pixels_that_are_not_square(tmp_path):
    file = write(tmp_path / 'v.mp4', aspect=(3, 2))
    frames, info = read(Video(str(file)), lambda info: np.array([0.5]), (48, 96))
    assert (info.height, info.width) == (48, 96) and frames.shape[1:3] == (48, 96)
    assert number(frames[0]) == 12


def test_a_size_that_changes_on_the_way(tmp_path):
    parts = [write(tmp_path / f'{k}.h264', 10, size=size).read_bytes() for k, size in enumerate([(48, 64), (96, 128)])]
    frames, info = read(Video(b''.join(parts)), all_times, CANVAS)
    assert (info.height, info.width) == (48, 64) and frames.shape == (20, 48, 64, 3)
    assert numbers(frames) == [*range(10), *range(10)]


@pytest.mark.parametrize('channels', [1, 3])
def test_reduced_with_antialias(tmp_path, channels):
    file = write(tmp_path / 'v.mp4', size=(192, 256))
    frames = frames_at(file, [0.2], (24, 64), channels=channels)
    image = decoded(file)[1][5].astype(float).reshape(24, 8, 32, 8, 3).mean((1, 3))
    assert frames.shape == (1, 24, 32, channels)
    assert np.abs(frames[0] - image[..., :channels]).mean() < 3


def test_span(tmp_path):
    file = write(tmp_path / 'v.mp4', 50)
    frames, info = read(Video(str(file), 0.4, 1.2), all_times, CANVAS)
    assert info.duration == pytest.approx(0.8)
    assert numbers(frames) == list(range(10, 30))
    assert read(Video(str(file), 1.0), all_times, CANVAS)[1].duration == pytest.approx(1.0)
    assert read(Video(str(file), 1.0, 9.0), all_times, CANVAS)[1].duration == pytest.approx(1.0)
    for span in ((2.5, 3.0), (1.0, 0.5), (-1.0, 1.0)):
        with pytest.raises(Unreadable, match='no span from'):
            frames_at(file, [0], span=span)


@pytest.mark.parametrize('name', ['v.mp4', 'v.mkv', 'v.avi', 'v.flv'])
def test_a_file_that_was_cut_off(tmp_path, name):
    options = dict(movflags='faststart') if name == 'v.mp4' else {}
    file = cut(
        write(tmp_path / name, 100, sound=4.0 * (name in ('v.mp4', 'v.mkv')), **options),
        0.7 if name == 'v.avi' else 0.5,
    )
    assert numbers(frames_at(file, [0, 0.6])) == [0, 15]
    with pytest.raises(Unreadable, match=r'can be read up to \d\.\d\d s of [234]\.\d\d s'):
        frames_at(file, [0, 0.6, 3.9])
    with pytest.raises(Unreadable, match='can be read up to'):
        encode(Video(str(file)))


def test_a_damaged_middle(tmp_path):
    file = write(tmp_path / 'v.mp4', 100, gop=10, codec='mpeg4', bframes=0, movflags='faststart')
    data = bytearray(file.read_bytes())
    with av.open(str(file)) as container:
        packet = next(p for p in container.demux(video=0) if p.pts * p.time_base == 2)
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    try:
        frames = read(Video(bytes(data)), lambda info: np.array([1.0, 3.0]), CANVAS)[0]
    except Unreadable as error:
        pytest.fail(f'what is not wanted does no harm: {error}')
    assert numbers(frames) == [25, 75]
    with pytest.raises(Unreadable, match='damaged'):
        read(Video(bytes(data)), lambda info: np.array([1.0, 2.0, 3.0]), CANVAS)


@pytest.mark.parametrize('seed', range(20))
def test_noise_in_the_file_is_an_error_of_the_record(tmp_path, seed):
    """Whatever comes, it is frames or one of the errors that a bad record may raise."""
    noise = np.random.default_rng(seed)
    data = bytearray(write(tmp_path / 'v.mp4', 20, movflags='faststart').read_bytes())
    for place in noise.integers(len(data), size=40):
        data[place] = noise.integers(256)
    try:
        frames, info = read(Video(bytes(data)), lambda info: np.linspace(0, min(info.duration, 1e6), 5), CANVAS)
        assert frames.shape[0] == 5
    except (ValueError, OSError, av.FFmpegError):
        pass


def hostile(folder, kind):
    file = folder / kind
    if kind in ('sound.wav', 'sound.m4a'):
        return write_sound(file, 'pcm_s16le' if kind == 'sound.wav' else 'aac')
    if kind == 'one.mp4':
        return write(file, 1)
    if kind == 'no_index.mp4':
        return cut(write(file), 0.5)
    content = dict(empty=b'', text=b'these are words\n' * 90, picture=b'', list=b'#EXTM3U\n#EXTINF:1\n/etc/hostname\n')
    content['noise'] = np.random.default_rng(0).bytes(5000)
    if kind == 'picture.png':
        from PIL import Image

        Image.fromarray(videos.picture(3)).save(file)
    else:
        file.write_bytes(content[file.stem])
    return file


HOSTILE = {
    'empty.mp4': r'empty file \(0 bytes\)',
    'text.txt': r"not a video: starts with b'these are w",
    'text.mp4': r"not a video: starts with b'these are w",
    'noise.mp4': 'not a video',
    'list.m3u8': 'not a video',
    'picture.png': 'not a video, but',
    'sound.wav': 'no video stream, audio only',
    'sound.m4a': 'no video stream, audio only',
    'one.mp4': 'only one frame',
    'no_index.mp4': 'without its index',
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_no_video(tmp_path, kind):
    file = hostile(tmp_path, kind)
    for source in (str(file), file.read_bytes()):
        with pytest.raises(Unreadable, match=HOSTILE[kind]):
            read(Video(source), lambda info: np.zeros(2), CANVAS)
    with pytest.raises(Unreadable, match=HOSTILE[kind]):
        encode(Video(str(file)))


def test_nothing_that_can_be_decoded(tmp_path):
    file = write(tmp_path / 'v.mp4', codec='mpeg4', bframes=0, movflags='faststart')
    data = bytearray(file.read_bytes())
    start = data.index(b'mdat')
    data[start + 4 :] = bytes(len(data) - start - 4)
    with pytest.raises(Unreadable, match='no frame can be decoded|only one frame can be decoded'):
        read(Video(bytes(data)), lambda info: np.zeros(2), CANVAS)


def test_wrong_arguments(tmp_path):
    file = write(tmp_path / 'v:1.mp4', 5)
    assert numbers(frames_at(file, [0.08])) == [2]
    with pytest.raises(Unreadable, match='48 x 64 pixels, smaller than data.min_side=50'):
        frames_at(file, [0], min_side=50)
    with pytest.raises(InputError, match='channels=4'):
        frames_at(file, [0], channels=4)
    with pytest.raises(InputError, match='decord'):
        frames_at(file, [0], backend='decord')
    with pytest.raises(FileNotFoundError):
        frames_at(tmp_path / 'missing.mp4', [0])


def test_torchcodec_gives_the_same_frames(tmp_path):
    pytest.importorskip('torchcodec')
    for name, kind in dict(a=dict(rotation=90), b=dict(times=np.cumsum(rng.uniform(0.02, 0.2, 30))), c={}).items():
        file = write(tmp_path / f'{name}.mp4', **kind)
        times = rng.uniform(0, 1.3, 9)
        for channels in (1, 3):
            ours, info = read(Video(str(file)), lambda info: times, CANVAS, channels=channels)  # noqa: B023
            theirs, same = read(Video(str(file)), lambda info: times, CANVAS, channels=channels, backend='torchcodec')  # noqa: B023
            np.testing.assert_allclose(info, same, rtol=0.05)
            assert np.abs(ours - theirs.astype(float)).mean() < 3
    with pytest.raises(Unreadable, match='cut off'):
        frames_at(cut(write(tmp_path / 'v.mp4', 100, movflags='faststart'), 0.5), [3.9], backend='torchcodec')
    with pytest.raises(Unreadable, match='not a video'):
        read(Video(b'words' * 99), lambda info: np.zeros(2), CANVAS, backend='torchcodec')


def test_torchcodec_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchcodec.decoders', None)
    with pytest.raises(InputError, match='pip install torchcodec'):
        frames_at(write(tmp_path / 'v.mp4', 5), [0], backend='torchcodec')


@pytest.mark.parametrize('kind', [dict(), dict(rotation=90, size=(48, 80)), dict(size=(53, 75))])
def test_encoded_again(tmp_path, kind):
    file = write(tmp_path / 'v.mp4', 50, sound=1.0, **kind)
    again = encode(Video(str(file), 0.4, 1.6), short_side=32, keyframes=5)
    with av.open(BytesIO(again)) as container:
        assert [stream.type for stream in container.streams] == ['video']
        packets = [packet for packet in container.demux() if packet.size]
        keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
    before, info = read(Video(str(file), 0.4, 1.6), all_times, (32, 999))
    after, new = read(Video(again), all_times, (32, 999))
    assert min(new.height, new.width) == 32 and new.duration == pytest.approx(1.2)
    assert keys == list(range(0, 30, 5))
    assert np.abs(new.width / new.height - info.width / info.height) < 0.1
    if 'rotation' not in kind:
        assert numbers(after) == numbers(before) == list(range(10, 40))


def test_encoded_with_fewer_frames_or_their_own_times(tmp_path):
    times = np.cumsum(rng.uniform(0.02, 0.1, 60))
    file = write(tmp_path / 'v.mp4', times=times)
    seconds, _ = decoded(file)
    fewer = encode(Video(str(file)), fps=5)
    frames, info = read(Video(fewer), lambda info: (np.arange(round(info.duration * 5)) + 0.5) / 5, CANVAS)
    assert info.rate == pytest.approx(5) and numbers(frames) == shown(seconds, np.arange(len(frames)) / 5)
    same = encode(Video(str(file)), fps=1000)
    np.testing.assert_allclose(*[read_times(data) for data in (same, file.read_bytes())], atol=1e-3)


def read_times(data):
    with av.open(BytesIO(data)) as container:
        times = np.array([frame.time for frame in container.decode(video=0)])
        return times - times[0]


def test_pyav_is_named_where_it_is_missing(tmp_path, monkeypatch):
    file = write(tmp_path / 'v.mp4', 5)
    monkeypatch.setitem(sys.modules, 'av', None)
    for use in (lambda: frames_at(file, [0]), lambda: encode(Video(str(file)))):
        with pytest.raises(InputError, match='pip install'):
            use()


def test_a_frame_may_not_be_gigabytes(tmp_path, monkeypatch):
    file = write(tmp_path / 'v.mp4', 5)
    monkeypatch.setattr(player, '_MAX_PIXELS', 48 * 64 - 1)
    with pytest.raises(Unreadable, match='48 x 64 pixels, more than a frame may have'):
        frames_at(file, [0])
