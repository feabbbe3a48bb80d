"""Video files of every awkward kind, whose pictures show the number of their frame."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLOCK = 90_000


def picture(number: int, size=(48, 64)) -> np.ndarray:
    """u8[h, w, 3]: in the upper half eight bars, the bits of the number; below a bright left and a dark right."""
    height, width = size
    bars = np.arange(width) * 8 // width
    bright = np.where(number >> bars & 1, 220, 30)
    image = np.empty((height, width), np.uint8)
    image[: height // 2], image[height // 2 :] = bright, np.where(bars < 4, 160, 90)
    return image[..., None].repeat(3, -1)


def number(frame: np.ndarray) -> int:
    """Of a picture u8[h, w, C] that may have been resized."""
    height, width = frame.shape[:2]
    centres = ((np.arange(8) + 0.5) * width / 8).astype(int)
    bits = frame[height // 4, centres].mean(-1) > 125
    return int((bits << np.arange(8)).sum())


def numbers(frames: np.ndarray) -> list[int]:
    return [number(frame) for frame in frames]


def write(
    path: Path,
    count: int = 30,
    *,
    size=(48, 64),
    codec='libx264',
    times: Iterable[float] | None = None,
    gop=12,
    bframes=2,
    rotation=0,
    aspect=None,
    sound=0.0,
    start=0.0,
    format=None,
    **options,
) -> Path:
    """A video of 25 frames per second, or of frames at `times` (seconds); `sound` seconds of it too."""
    times = [k / 25 for k in range(count)] if times is None else list(times)
    with av.open(str(path), 'w', format=format, options=options) as container:
        video = container.add_stream(codec, rate=25, options=dict(g=str(gop), bf=str(bframes), crf='12'))
        video.height, video.width = size
        video.pix_fmt = 'yuv420p' if not (size[0] % 2 or size[1] % 2) else 'yuv444p'
        if codec == 'libx264' and path.suffix != '.avi':
            video.codec_context.time_base = Fraction(1, CLOCK)
        if aspect:
            video.sample_aspect_ratio = video.codec_context.sample_aspect_ratio = Fraction(*aspect)
        if rotation:
            video.set_display_rotation(rotation)
        audio = container.add_stream('aac' if path.suffix != '.webm' else 'libopus', rate=48_000) if sound else None
        for k, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(k, size), format='rgb24')
            frame.time_base = video.codec_context.time_base or Fraction(1, 25)
            frame.pts = round((start + time) / frame.time_base)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound:
            _sing(container, audio, sound)
    return path


def write_sound(path: Path, codec: str, seconds=0.5) -> Path:
    with av.open(str(path), 'w') as container:
        _sing(container, container.add_stream(codec, rate=48_000), seconds)
    return path


def _sing(container, stream, seconds: float) -> None:
    size = 960
    for k in range(int(seconds * 48_000 / size)):
        wave = (3000 * np.sin(np.arange(k * size, (k + 1) * size) / 9)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None], format='s16', layout='mono')
        frame.sample_rate, frame.pts, frame.time_base = 48_000, k * size, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def cut(path: Path, share: float) -> Path:
    """The first `share` of a file."""
    data = path.read_bytes()
    short = path.with_name(f'cut_{path.name}')
    short.write_bytes(data[: int(len(data) * share)])
    return short


def decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """All frames, by a plain decode from beginning to end: seconds since the first, and u8[h, w, 3] as stored."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        ticks = [k * Fraction(1, 25) if f.pts is None else f.pts * stream.time_base for k, f in enumerate(frames)]
        return [float(t - ticks[0]) for t in ticks], [f.to_ndarray(format='rgb24') for f in frames]
