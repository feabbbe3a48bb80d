"""What `check` and `pack` do with one video, in the isolated child: looked at, packed, read back.

Imports what is light, for a child imports it too.
"""

from functools import partial
from io import BytesIO
from typing import NamedTuple

import numpy as np

from mim_jax.data import isolate
from mim_jax.data.decoders import Info, encode, read
from mim_jax.data.image import shrink
from mim_jax.data.player import PyAV
from mim_jax.data.sources.base import Video
from mim_jax.data.video import array_frames, array_info, opened
from mim_jax.errors import InputError


class Look(NamedTuple):
    """What a video is."""

    format: str  # 'mov,mp4,m4a,3gp,3g2,mj2', 'array'
    codec: str  # 'h264', or the NumPy type of an array
    channels: int
    info: Info
    moments: np.ndarray  # f64[2, channels]: means of x and of x squared over the frames looked at, x in [0, 1]


def look(data: Video | bytes | np.ndarray, *, channels: int, frames: int, side: int, timeout: float) -> Look:
    """Decodes `frames` of a video, spread over it from the first to the last, none larger than side x side pixels.

    Args:
        channels: to decode to; 0 = as many as the video has.
        timeout: seconds that it may take.

    Raises:
        Unreadable or what the decoder raises: this record is bad.
    """
    data = opened(data)
    if isinstance(data, Video):
        seen = isolate.run(_look, data, channels, frames, side, timeout=timeout)
        return seen._replace(moments=seen.moments.copy())
    channels = channels or (data.shape[-1] if data.ndim == 4 else 1)
    rows = np.linspace(0, len(data) - 1, min(frames, len(data))).round().astype(int)
    some = array_frames(data, rows, (side, side), channels)
    return Look('array', str(data.dtype), channels, array_info(data), _moments(some))


def repack(
    data: Video | bytes | np.ndarray,
    *,
    timeout: float,
    short_side: int = 0,
    fps: float = 0.0,
    keyframes: int = 0,
    crf: int | None = None,
) -> bytes:
    """A video as it goes into a shard: encoded anew if anything is asked for, or if only a span of it counts.

    Args:
        timeout: seconds that it may take.
        short_side, fps, keyframes, crf: of `decoders.encode`; 0, of crf None = as it is.

    Raises:
        Unreadable or what the decoder raises: this record is bad.
        InputError: arrays that are to be encoded.
    """
    data = opened(data)
    if not isinstance(data, Video):
        return _repack_array(data, short_side, bool(fps or keyframes or crf is not None))
    how = {key: value for key, value in dict(short_side=short_side, fps=fps, keyframes=keyframes).items() if value}
    how |= {} if crf is None else dict(crf=crf)
    if how or (data.start, data.end) != (0.0, None):
        return isolate.run(partial(encode, **how), data, timeout=timeout)
    look(data, channels=0, frames=3, side=64, timeout=timeout)
    if isinstance(data.file, bytes):
        return data.file
    with open(data.file, 'rb') as file:
        return file.read()


def first_frame(data: bytes, timeout: float) -> None:
    """Decodes it. Errors as `look`."""
    look(data, channels=0, frames=1, side=64, timeout=timeout)


def _look(video: Video, channels: int, frames: int, side: int) -> Look:
    """In the child."""
    some, info = read(video, partial(_spread, frames), (side, side), channels=channels or 3)
    with PyAV(video.file) as player:
        kind, codec = player.container.format.name, player.stream.codec_context
    if not channels and (codec.pix_fmt or '').startswith('gray'):
        some = some[..., :1]
    return Look(kind, codec.name, some.shape[-1], info, _moments(some))


def _spread(frames: int, info: Info) -> np.ndarray:
    """f64[frames] seconds: the middle of the first frame to that of the last."""
    return np.linspace(0, max(info.duration - 1 / info.rate, 0), frames) + 0.5 / info.rate


def _moments(frames: np.ndarray) -> np.ndarray:
    values = frames.reshape(-1, frames.shape[-1]) / 255
    return np.stack([values.mean(0), np.square(values).mean(0)])


def _repack_array(array: np.ndarray, short_side: int, encoded: bool) -> bytes:
    """As NPY, its frames reduced."""
    if encoded:
        raise InputError('--fps, --keyframes and --crf are for video files; arrays of frames stay arrays')
    scale = short_side / min(array.shape[1:3]) if short_side else 1.0
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in array.shape[1:3])
        frames = array[..., None] if array.ndim == 3 else array
        array = np.stack([shrink(frame, size) for frame in frames]).reshape(len(array), *size, *array.shape[3:])
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()
