"""Continuous latents of images, in place of their pixels."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO

import numpy as np

from mim_jax.data.image import Unreadable
from mim_jax.data.reader import Reader
from mim_jax.data.sources.base import Source
from mim_jax.data.tokens import agree, load


class LatentReader(Reader):
    """What an autoencoder with the bottleneck `KL` makes of images, as `python -m mim_jax.tools.tokenize SRC DST --run=RUN` writes it.

    A record is an array of floats [h, w, C].

    Args:
        canvas: (h, w); `settle` fills it in, as it does the other values of `data` that the index of the shards knows.
        channels: C.
    """

    media = 'latents'

    def __init__(self, *, canvas: Sequence[int], channels: int):
        self.shape = (*canvas, channels)

    @property
    def row(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each array of a row: image f32[h, w, C], not normalised."""
        return dict(image=(self.shape, 'float32'))

    def arrange(self, source: Source) -> Source:
        """The source as it is.

        Raises:
            InputError: its latents have another shape.
        """
        return agree(source, {'data.canvas': ('shape', list(self.shape))})

    @classmethod
    def settle(cls, options: Mapping, records: Callable[..., Source]) -> dict:
        """Of `data`, not of the reader: image_size, canvas, channels, and mean and std of each channel over the training latents."""
        if not (told := records().tokens):
            return {}
        *size, channels = told['shape']
        return dict(
            image_size=tuple(size),
            canvas=tuple(size),
            channels=channels,
            mean=tuple(told['mean']),
            std=tuple(told['std']),
        )

    def __call__(self, data: bytes | np.ndarray, draw: tuple[int, int] | None, out: dict) -> tuple[str, ...]:
        """Fills out['image'] f32[1, h, w, C]."""
        array = load(data)
        if array.shape != self.shape or array.dtype.kind != 'f':
            raise Unreadable(
                f'{array.dtype} of shape {list(array.shape)}; latents have to be floats of shape {list(self.shape)}'
            )
        if not np.isfinite(array).all():
            raise Unreadable('not all latents are finite')
        out['image'][0] = array
        return ()


def save(array: np.ndarray) -> bytes:
    """A record of latents as bytes, in float16. The inverse of `tokens.load`.

    Raises:
        Unreadable: one is not finite, or too large for the type.
    """
    with np.errstate(over='ignore'):
        array = array.astype(np.float16)
    if not np.isfinite(array).all():
        raise Unreadable('not all latents are finite as float16')
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()
