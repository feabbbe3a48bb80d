"""Videos and arrays of frames to clips of the asked length, type and largest size."""

from io import BytesIO

import numpy as np

from mim_jax.data import isolate
from mim_jax.data.decoders import BACKENDS, Info, read
from mim_jax.data.image import Unreadable, fit, shrink, to_channels
from mim_jax.data.reader import Reader
from mim_jax.data.sampling import SAMPLINGS
from mim_jax.data.sources.base import Video
from mim_jax.errors import InputError

ARRAY_RATE = 25.0  # frames per second of an array, which does not say
_NPY = b'\x93NUMPY'


class VideoReader(Reader):
    """Records to `clips` rows of one clip each, all from one decode (repeated sampling, arXiv 2205.09113).

    Files are decoded in a child process of each decoding thread, which a crash or a stall beyond `timeout` seconds ends
    in place of the trainer.

    Args:
        channels: 3 = RGB, 1 = grey.
        dtype: 'uint8'.
        canvas: largest (height, width); larger frames are reduced to fit, aspect kept.
        min_side: pixels; smaller videos are bad.
        frames: of a clip.
        stride: frames from one to the next; see `sampling`.
        sampling: 'dense', 'segment' (TSN) or 'still'.
        clips: of a record.
        fps: rate the stride counts in; 0 = that of the file.
        backend: 'pyav' or 'torchcodec'.
        timeout: seconds a record may take.

    Raises:
        InputError: an option out of range.
    """

    media = 'video'
    own_processes = True

    def __init__(
        self,
        *,
        channels: int = 3,
        dtype: str = 'uint8',
        canvas: tuple[int, int],
        min_side: int = 2,
        frames: int = 16,
        stride: float = 4,
        sampling: str = 'dense',
        clips: int = 1,
        fps: float = 0.0,
        backend: str = 'pyav',
        timeout: float = 60.0,
    ):
        for name, value, known in (('sampling', sampling, SAMPLINGS), ('backend', backend, BACKENDS)):
            if value not in known:
                raise InputError(f'data.reader.{name}={value}: it has to be one of {", ".join(known)}')
        if dtype != 'uint8' or channels not in (1, 3):
            raise InputError(
                f'data.dtype={dtype}, data.channels={channels}: videos are read as uint8 with 3 channels or 1'
            )
        if min(frames, stride, clips) <= 0 or timeout <= 0 or fps < 0:
            raise InputError(
                f'data.reader: frames={frames}, stride={stride}, clips={clips} and timeout={timeout} have to be above 0, and fps={fps} not below'
            )
        self.clips, self.backend, self.timeout = clips, backend, timeout
        self.shape = (frames, *canvas, channels)
        self.size = dict(canvas=tuple(canvas), channels=channels, min_side=min_side)
        self.times = dict(sampling=sampling, frames=frames, stride=stride, clips=clips, fps=fps)

    @property
    def row(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each array of a row: video uint8[T, *canvas, C], size i32[2] = (h, w)."""
        return dict(video=(self.shape, 'uint8'), size=((2,), 'int32'))

    def __call__(self, data: Video | bytes | np.ndarray, draw: tuple[int, int] | None, out: dict) -> tuple[str, ...]:
        """Fills out['video'] uint8[clips, T, *canvas, C], zeros so far, and out['size'] i32[clips, 2].

        Args:
            data: of a record.
            draw: (seed, sample index), from which moments are drawn; None = the fixed ones of a test.
            out: views into a batch.

        Returns:
            Conversions worth telling.

        Raises:
            Unreadable or what the decoder raises: this record is bad.
        """
        data = opened(data)
        if isinstance(data, Video):
            how = dict(backend=self.backend, **self.size)
            frames = isolate.run(from_file, data, draw, self.times, how, timeout=self.timeout)
        else:
            frames = from_array(data, draw, self.times, self.size)
        _, height, width, _ = frames.shape
        out['size'][:] = height, width
        out['video'][:, :, :height, :width] = frames.reshape(*out['video'].shape[:2], *frames.shape[1:])
        return ()


def opened(data: Video | bytes | np.ndarray) -> Video | np.ndarray:
    """Bytes as the file or the array uint8[T, h, w] or [T, h, w, C] that they are.

    Raises:
        Unreadable: an array that is no video.
        ValueError or EOFError: a broken NPY file.
    """
    if isinstance(data, bytes):
        data = np.load(BytesIO(data), allow_pickle=False) if data[:6] == _NPY else Video(data)
    if isinstance(data, np.ndarray) and (data.ndim not in (3, 4) or data.dtype != np.uint8 or not data.size):
        raise Unreadable(f'array {data.dtype}{list(data.shape)}; a video has to be uint8 [T, h, w] or [T, h, w, C]')
    return data


def moments(info: Info, draw: tuple[int, int] | None, *, sampling: str, **how) -> np.ndarray:
    """f64[clips * T] seconds."""
    return SAMPLINGS[sampling](info, None if draw is None else np.random.default_rng(draw), **how).ravel()


def from_file(video: Video, draw: tuple[int, int] | None, times: dict, how: dict) -> np.ndarray:
    """Clips of a file, one after another: uint8[clips * T, h, w, C]. Runs in a child process."""
    return read(video, lambda info: moments(info, draw, **times), **how)[0]


def from_array(array: np.ndarray, draw: tuple[int, int] | None, times: dict, size: dict) -> np.ndarray:
    """Clips of an array that `opened` let through, as `from_file`."""
    info = array_info(array)
    if min(info.height, info.width) < size['min_side']:
        raise Unreadable(f'{info.height} x {info.width} pixels, smaller than data.min_side={size["min_side"]}')
    rows = (moments(info, draw, **times) * ARRAY_RATE).astype(int)
    return array_frames(array, np.minimum(rows, len(array) - 1), size['canvas'], size['channels'])


def array_info(array: np.ndarray) -> Info:
    """Of an array uint8[T, h, w] or [T, h, w, C]."""
    return Info(len(array) / ARRAY_RATE, ARRAY_RATE, *array.shape[1:3])


def array_frames(array: np.ndarray, rows: np.ndarray, canvas: tuple[int, int], channels: int) -> np.ndarray:
    """Rows i[N] of an array uint8[T, h, w] or [T, h, w, C], reduced to fit the canvas: uint8[N, h, w, channels].

    Raises:
        Unreadable: another number of channels that cannot be converted.
    """
    frames = array[rows].reshape(-1, *array.shape[1:3], array.shape[3] if array.ndim == 4 else 1)
    small = fit(*array.shape[1:3], canvas)
    return np.stack([shrink(to_channels(frame, channels)[0], small) for frame in frames])
