"""The wanted frames of a video, by time, and videos made smaller. PyAV, or torchcodec where it is asked for."""

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mim_jax.data.image import Unreadable, fit
from mim_jax.data.sources.base import Video
from mim_jax.errors import InputError

FORMATS = {1: 'gray', 3: 'rgb24'}
_CLOCK = 90_000  # ticks per second of what is encoded


class Info(NamedTuple):
    """What can be used of a video."""

    duration: float  # seconds of the span start..end that the file has
    rate: float  # frames per second, average
    height: int  # as displayed: rotation and pixel aspect applied
    width: int


def read(
    video: Video,
    choose: Callable[[Info], np.ndarray],
    canvas: tuple[int, int],
    *,
    channels: int = 3,
    backend: str = 'pyav',
    min_side: int = 2,
) -> tuple[np.ndarray, Info]:
    """The frames on screen at the times that `choose` names; never more of the file in memory than a frame or two.

    Args:
        video: path or bytes, and the span of it to use.
        choose: given the Info, f64[N] seconds since the start of the span, in any order; after the last frame it is held.
        canvas: (height, width) that the frames are reduced to fit in, with antialias, aspect kept.
        channels: 1 (gray) or 3 (RGB).
        backend: 'pyav' or 'torchcodec'.
        min_side: pixels that height and width must have.

    Returns:
        (uint8[N, h, w, channels], Info) with (h, w) = `image.fit(height, width, canvas)`.

    Raises:
        Unreadable, OSError or av.FFmpegError: this record is bad, or breaks off before a wanted frame.
        InputError: unknown backend or channels, or torchcodec is not installed.
    """
    if channels not in FORMATS:
        raise InputError(f'data.channels={channels}: frames of a video have 1 or 3 channels')
    if backend not in BACKENDS:
        raise InputError(f'{backend!r} does not decode videos; take one of {", ".join(BACKENDS)}')
    _check_file(video.file)
    with BACKENDS[backend](video.file) as player:
        info = _span(video, player.info)
        if min(info.height, info.width) < min_side:
            raise Unreadable(f'{info.height} x {info.width} pixels, smaller than data.min_side={min_side}')
        times = np.asarray(choose(info), np.float64) + video.start
        return _frames(player, times, fit(info.height, info.width, canvas), channels), info


def _frames(player, times: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """uint8[N, *size, channels] in the order of `times`, by one pass forwards."""
    frames = np.empty((len(times), *size, channels), np.uint8)
    last = None
    for row in np.argsort(times, kind='stable'):
        repeated = last is not None and times[row] == times[last]
        frames[row] = frames[last] if repeated else player.pixels(times[row], size, FORMATS[channels])
        last = row
    return frames


def encode(video: Video, *, short_side: int = 0, fps: float = 0.0, keyframes: int = 0, crf: int = 20) -> bytes:
    """The span of a video as an H.264 MP4 without sound, rotation and pixel aspect applied to the pixels.

    Args:
        video: path or bytes, and the span of it to keep.
        short_side: pixels that the shorter side is reduced to, where it is longer; 0 = as it is. Sides become even.
        fps: frames per second that are kept, where there are more; 0 = all, at their own times.
        keyframes: frames from one key frame to the next, which bounds what has to be decoded for a clip; 0 = x264 decides.
        crf: x264's quality, 0 (lossless) to 51.

    Raises:
        As `read`, and InputError: PyAV has no x264.
    """
    _check_file(video.file)
    av, file = _import_av(), BytesIO()
    with pyav(video.file) as player, av.open(file, 'w', format='mp4') as container:
        info = _span(video, player.info)
        size = _even(info, short_side)
        stream = _h264(container, size, min(fps or info.rate, info.rate), keyframes, crf)
        count = 0
        for time, picture in _shown(player, video.start, info, fps):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(player.draw(picture, size, 'rgb24')), format='rgb24'
            )
            frame.pts, frame.time_base = round(time * _CLOCK), Fraction(1, _CLOCK)
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    if count < 2:
        raise Unreadable(f'only one frame from {video.start:g} to {video.start + info.duration:g} s')
    return file.getvalue()


def _shown(player, start: float, info: Info, fps: float) -> Iterator[tuple[float, Any]]:
    """The frames of a span with the seconds since its start at which they come on screen."""
    if 0 < fps < info.rate:
        for k in range(max(1, round(info.duration * fps))):
            yield k / fps, player.at(start + k / fps).picture
        return
    before = -1.0
    for time, picture in player.between(start, start + info.duration):
        time = max(0.0, time - start)
        if time > before + 1 / _CLOCK:
            yield time, picture
            before = time


def _even(info: Info, short_side: int) -> tuple[int, int]:
    """(height, width) that H.264 can have."""
    scale = min(1.0, short_side / min(info.height, info.width)) if short_side else 1.0
    return max(2, 2 * round(info.height * scale / 2)), max(2, 2 * round(info.width * scale / 2))


def _h264(container, size: tuple[int, int], rate: float, keyframes: int, crf: int):
    options = dict(crf=str(crf))
    if keyframes:
        options |= dict(g=str(keyframes), sc_threshold='0')
    try:
        stream = container.add_stream('libx264', rate=Fraction(rate).limit_denominator(1001), options=options)
    except ValueError as error:
        raise InputError('videos are encoded with x264, which this PyAV lacks: pip install av has it') from error
    stream.height, stream.width = size
    stream.pix_fmt, stream.codec_context.time_base = 'yuv420p', Fraction(1, _CLOCK)
    stream.codec_context.thread_count = 1
    return stream


def _check_file(file: str | bytes) -> None:
    if not (len(file) if isinstance(file, bytes) else os.path.getsize(file)):
        raise Unreadable('empty file (0 bytes)')


def _span(video: Video, whole: Info) -> Info:
    """Info of the part of the file that is asked for."""
    end = whole.duration if video.end is None else min(video.end, whole.duration)
    if not 0 <= video.start < end:
        stop = '' if video.end is None else f' to {video.end:g}'
        raise Unreadable(f'no span from {video.start:g}{stop} s in a video of {whole.duration:.2f} s')
    return whole._replace(duration=end - video.start)


def pyav(file: str | bytes):
    """player.PyAV of a file, imported only where there are videos."""
    _import_av()
    from mim_jax.data.player import PyAV

    return PyAV(file)


def _import_av():
    try:
        import av
    except ImportError as error:
        raise InputError("videos are decoded by PyAV: pip install 'mim_jax[video]'") from error
    return av


class TorchCodec:
    """The same by torchcodec, which reads all timestamps of the file first."""

    def __init__(self, file: str | bytes):
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(f'torchcodec needs pip install torchcodec and FFmpeg ({_first_line(error)})') from error
        try:
            self.decoder = VideoDecoder(file, dimension_order='NHWC', num_ffmpeg_threads=1, device='cpu')
        except (ValueError, RuntimeError) as error:
            raise Unreadable(f'not a video: {_first_line(error)}') from error
        data = self.decoder.metadata
        if (data.num_frames or 0) < 2:
            raise Unreadable('only one frame' if data.num_frames else 'no frame can be decoded')
        self.begin = data.begin_stream_seconds
        width = round(data.width * (data.pixel_aspect_ratio or 1))
        duration = max(data.duration_seconds_from_header or 0.0, data.end_stream_seconds - self.begin)
        self.info = Info(duration, data.average_fps, data.height, width)

    def __enter__(self) -> 'TorchCodec':
        return self

    def __exit__(self, *_) -> None:
        del self.decoder

    def pixels(self, time: float, size: tuple[int, int], form: str) -> np.ndarray:
        """As `player.PyAV.pixels`."""
        end = self.decoder.metadata.end_stream_seconds - self.begin
        if time > end + 1 / self.info.rate and self.info.duration > end + 1 / self.info.rate:
            raise Unreadable(f'cut off: can be read up to {end:.2f} s of {self.info.duration:.2f} s')
        time = max(0.0, time) + min(1e-3, 0.25 / self.info.rate)
        try:  # by index or list: a single time makes torchcodec trust durations, which are wrong where B-frames vary in rate
            held = time >= end
            found = self.decoder[-1] if held else self.decoder.get_frames_played_at([self.begin + time]).data[0]
        except RuntimeError as error:
            raise Unreadable(
                f'cut off or damaged at {time:.2f} s of {self.info.duration:.2f} s: {_first_line(error)}'
            ) from error
        image = Image.fromarray(found.numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
        array = np.asarray(image.convert('L') if form == 'gray' else image)
        return array.reshape(*size, -1)


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n')[0]


BACKENDS = dict(pyav=pyav, torchcodec=TorchCodec)
