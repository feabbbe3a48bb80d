"""Videos and arrays of frames to clips of the asked length, type and largest size."""

from io import BytesIO

import numpy as np

from mim_jax.data import isolate
from mim_jax.data.decoders import BACKENDS, Info, read
from mim_jax.data.image import Unreadable, fit, shrink, to_channels
from mim_jax.data.sampling import SAMPLINGS
from mim_jax.data.sources.base import Video
from mim_jax.errors import InputError

ARRAY_RATE = 25.0  # frames per second of an array, which does not say
_NPY = b'\x93NUMPY'


class VideoReader:
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
    own_processes = True  # decodes in processes of its own, one for each thread that calls it

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
        if isinstance(data, bytes):
            data = np.load(BytesIO(data), allow_pickle=False) if data[:6] == _NPY else Video(data)
        if isinstance(data, np.ndarray):
            out['size'][:] = from_array(data, draw, self.times, self.size, out['video'])
            return ()
        how = dict(backend=self.backend, **self.size)
        out['size'][:] = isolate.run(from_file, data, draw, self.times, how, out=out['video'], timeout=self.timeout)
        return ()


def moments(info: Info, draw: tuple[int, int] | None, *, sampling: str, **how) -> np.ndarray:
    """f64[clips * T] seconds."""
    return SAMPLINGS[sampling](info, None if draw is None else np.random.default_rng(draw), **how).ravel()


def from_file(video: Video, draw: tuple[int, int] | None, times: dict, how: dict, out: np.ndarray) -> tuple[int, int]:
    """Clips of a file into out uint8[clips, T, *canvas, C]; gives (height, width). Runs in a child process."""
    frames, _ = read(video, lambda info: moments(info, draw, **times), **how)
    return _place(frames, out)


def from_array(array: np.ndarray, draw: tuple[int, int] | None, times: dict, size: dict, out: np.ndarray):
    """Clips of an array uint8[T, h, w] or [T, h, w, C], as `from_file`."""
    if array.ndim not in (3, 4) or array.dtype != np.uint8 or not array.size:
        raise Unreadable(
            f'array {array.dtype}{list(array.shape)}; a video has to be uint8 [T, h, w] or [T, h, w, C]'
        )
    if min(array.shape[1:3]) < size['min_side']:
        raise Unreadable(f'{array.shape[1]} x {array.shape[2]} pixels, smaller than data.min_side={size["min_side"]}')
    seconds = moments(Info(len(array) / ARRAY_RATE, ARRAY_RATE, *array.shape[1:3]), draw, **times)
    frames = array[np.minimum((seconds * ARRAY_RATE).astype(int), len(array) - 1)]
    frames = frames[..., None] if frames.ndim == 3 else frames
    small = fit(*array.shape[1:3], size['canvas'])
    return _place(np.stack([shrink(to_channels(frame, size['channels'])[0], small) for frame in frames]), out)


def _place(frames: np.ndarray, out: np.ndarray) -> tuple[int, int]:
    _, height, width, _ = frames.shape
    out[:, :, :height, :width] = frames.reshape(*out.shape[:2], *frames.shape[1:])
    return height, width
