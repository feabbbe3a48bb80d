"""Encoded images and arrays to pixels of the asked channels, type and largest size. NumPy and Pillow only."""

from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mim_jax.data.reader import Reader
from mim_jax.errors import InputError

DTYPES = ('uint8', 'uint16', 'float32')
MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_DEEP = ('I', 'F')  # Pillow's modes of more than 8 bits begin so
_NPY = b'\x93NUMPY'
_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_ORIENTATION = 0x0112

CMYK, ALPHA = 'CMYK converted to RGB', 'alpha channel dropped'
GRAY, COLOUR = 'grayscale repeated to RGB', 'colour reduced to grayscale'
DEPTH, ANIMATED = '16 bits reduced to 8', 'first frame of an animation'


class Unreadable(ValueError):
    """This one record cannot be used; the message is its reason."""


class Pixels(NamedTuple):
    """A decoded record."""

    array: np.ndarray  # [h, w, C] no larger than the canvas
    notes: tuple[str, ...]  # conversions worth telling
    original: tuple[int, int]  # (height, width) before it was reduced to the canvas


class ImageReader(Reader):
    """Records to rows of one image each, by `decode`, whose arguments it takes.

    Raises:
        InputError: an unknown dtype.
    """

    media = 'image'

    def __init__(self, *, channels: int = 3, dtype: str = 'uint8', canvas: tuple[int, int], min_side: int = 2):
        if dtype not in DTYPES:
            raise InputError(f'data.dtype={dtype}: it has to be one of {", ".join(DTYPES)}')
        self.how = dict(channels=channels, dtype=dtype, canvas=tuple(canvas), min_side=min_side)

    @property
    def row(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each array of a row: image dtype[*canvas, C], size i32[2] = (h, w)."""
        return dict(image=((*self.how['canvas'], self.how['channels']), self.how['dtype']), size=((2,), 'int32'))

    def __call__(self, data: bytes | np.ndarray, draw: tuple[int, int] | None, out: dict) -> tuple[str, ...]:
        """Fills out['image'] dtype[1, *canvas, C], zeros so far, and out['size'] i32[1, 2]; gives `Pixels.notes`."""
        pixels = decode(data, **self.how)
        height, width = pixels.array.shape[:2]
        out['image'][0, :height, :width], out['size'][0] = pixels.array, (height, width)
        return pixels.notes


def decode(
    data: bytes | np.ndarray, *, channels: int, dtype: str, canvas: tuple[int, int], min_side: int = 1
) -> Pixels:
    """Pixels of an encoded image (JPEG, PNG, WebP, TIFF, BMP, GIF, NPY) or of an array [h, w] or [h, w, C].

    Images larger than the canvas (height, width) are reduced with antialias, aspect kept; smaller ones stay untouched. EXIF
    orientation is applied. Integer types span their full range, float32 is in [0, 1] unless the record itself is float.

    Raises:
        Unreadable, OSError, ValueError or whatever Pillow raises on a broken file: this record is bad.
        InputError: it takes a library that is not installed.
    """
    record = opened(data, channels, dtype)
    form = _from_array if isinstance(record, np.ndarray) else _from_image
    pixels = form(record, channels, dtype, canvas)
    if min(pixels.original) < min_side:
        raise Unreadable(f'{pixels.original[0]} x {pixels.original[1]} pixels, smaller than data.min_side={min_side}')
    return pixels


def reason(error: Exception) -> str:
    """One line that says why a record is bad."""
    if isinstance(error, Unreadable):
        return str(error)
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def opened(data: bytes | np.ndarray, channels: int = 0, dtype: str = 'uint8') -> np.ndarray | Image.Image:
    """A record as an array, or as an image that Pillow has not decoded yet, if it can without loss.

    Args:
        channels: 0 = all there are: every page of a TIFF.

    Raises:
        Unreadable or what the reader raises: not an image.
        InputError: it takes a library that is not installed.
    """
    if not len(data):
        raise Unreadable('empty file (0 bytes)')
    if isinstance(data, np.ndarray):
        return data
    if data[:6] == _NPY:
        return np.load(BytesIO(data), allow_pickle=False)
    tiff = data[:4] in _TIFF
    if tiff and (channels not in (0, *MODES) or channels > 1 and dtype != 'uint8'):
        return read_tiff(data)
    try:
        image = Image.open(BytesIO(data))
    except Image.UnidentifiedImageError as error:
        if tiff:
            return read_tiff(data)
        raise Unreadable(f'not an image: starts with {bytes(data[:12])!r}') from error
    pages = getattr(image, 'n_frames', 1) if tiff else 1
    if tiff and (_is_deep_colour(image) or pages > 1 and channels in (0, pages)):
        return read_tiff(data)
    return image


class Kind(NamedTuple):
    """What a record is, before any conversion."""

    format: str
    mode: str  # Pillow's, or the NumPy type of an array
    channels: int
    bits: int  # 8, 16 or 32 (float)


def kind_of(data: bytes | np.ndarray) -> Kind:
    """Reads the header of an image, or all of an array file. Errors as `opened`."""
    record = opened(data)
    if isinstance(record, Image.Image):
        bits = 16 if record.mode.startswith('I') or _is_deep_colour(record) else 32 if record.mode == 'F' else 8
        return Kind(record.format, record.mode, len(record.getbands()), bits)
    form = 'array' if isinstance(data, np.ndarray) else 'NPY' if data[:6] == _NPY else 'TIFF'
    bands_first = record.shape[-1] > max(32, record.shape[0])  # no channel count, so the first axis must be it
    channels = 1 if record.ndim == 2 else record.shape[0 if bands_first else -1]
    return Kind(form, str(record.dtype), channels, 8 * record.dtype.itemsize if record.dtype.kind in 'bu' else 32)


def fit(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) reduced, aspect kept, to fit inside the canvas."""
    scale = min(canvas[0] / height, canvas[1] / width)
    return (height, width) if scale >= 1 else (max(1, round(height * scale)), max(1, round(width * scale)))


def _from_image(image: Image.Image, channels: int, dtype: str, canvas: tuple[int, int]) -> Pixels:
    """8 bits a channel, or one channel of more."""
    notes = []
    if image.format not in ('JPEG', 'MPO') and getattr(image, 'is_animated', False):
        notes.append(ANIMATED)
    if image.mode.startswith(_DEEP):
        array = np.asarray(ImageOps.exif_transpose(image))
        if array.dtype == np.int32 and 0 <= array.min() and array.max() < 1 << 16:
            array = array.astype(np.uint16)  # some 16-bit files open as 32-bit
        pixels = _from_array(array, channels, dtype, canvas)
        return pixels._replace(notes=(*notes, *pixels.notes))
    if _is_deep_colour(image):
        if dtype != 'uint8':
            raise Unreadable(
                f'16-bit colour {image.format}, read with 8 bits only: convert it to TIFF or NPY for data.dtype={dtype}'
            )
        notes.append(DEPTH)
    if channels not in MODES:
        raise Unreadable(f'{len(image.getbands())} channels ({image.mode}), but data.channels={channels}')
    orientation = _orientation(image)
    turned = orientation >= 5
    original = image.size if turned else image.size[::-1]
    height, width = fit(*original, canvas)
    size = (height, width) if turned else (width, height)
    mode = MODES[channels]
    notes += _mode_notes(image.mode, mode)
    if (height, width) != original:
        image.draft(mode, size)  # a JPEG can be decoded at 1/2, 1/4, 1/8
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    array = np.asarray(image)
    array = array[..., None] if channels == 1 else array
    return Pixels(array if dtype == 'uint8' else _to_dtype(array, dtype), tuple(notes), original)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; TIFF is turned by Pillow itself."""
    tagged = 'exif' in image.info or 'xmp' in image.info or 'XML:com.adobe.xmp' in image.info
    return image.getexif().get(_ORIENTATION, 1) if tagged and image.format != 'TIFF' else 1


def _is_deep_colour(image: Image.Image) -> bool:
    """16 bits a channel in the file, which Pillow cuts to 8."""
    return image.format != 'JPEG' and any(';16' in str(tile[3]) for tile in image.tile)


def _mode_notes(mode: str, asked: str) -> list[str]:
    gray = mode in ('L', 'LA', 'La', '1')
    notes = [CMYK] if mode == 'CMYK' else []
    if mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') and asked != 'RGBA':
        notes.append(ALPHA)
    if gray and asked != 'L':
        notes.append(GRAY)
    return notes + [COLOUR] * (asked == 'L' and not gray)


def read_tiff(data: bytes) -> np.ndarray:
    """Any bands and depth; bands last, or first where the file does not say which axis they are.

    Raises:
        InputError: tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise InputError("multi-band and 16-bit TIFF files need tifffile: pip install 'mim_jax[tiff]'") from error
    with tifffile.TiffFile(BytesIO(data)) as file:
        series = file.series[0]
        axes, array = series.axes, series.asarray()
    while array.ndim > 3 and 1 in array.shape:
        axis = array.shape.index(1)
        array, axes = array.squeeze(axis), axes[:axis] + axes[axis + 1 :]
    return np.moveaxis(array, axes.index('S'), -1) if 'S' in axes else array


def _from_array(array: np.ndarray, channels: int, dtype: str, canvas: tuple[int, int]) -> Pixels:
    """[h, w] or [h, w, C] of bool, uint8, uint16 or float."""
    if array.ndim not in (2, 3):
        raise Unreadable(f'array of shape {list(array.shape)}; it has to be [h, w] or [h, w, C]')
    if not array.size:
        raise Unreadable(f'empty array of shape {list(array.shape)}')
    array = (array[..., None] if array.ndim == 2 else array).astype(array.dtype.newbyteorder('='), copy=False)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == 'f':
        if not np.isfinite(array).all():
            raise Unreadable('not all values are finite')
        array = array.astype(np.float32)
    elif array.dtype not in (np.uint8, np.uint16):
        raise Unreadable(f'values are {array.dtype}; they have to be uint8, uint16 or float')
    array, notes = to_channels(array, channels)
    original = array.shape[:2]
    array = shrink(array, fit(*original, canvas))
    if array.dtype == np.uint16 and dtype == 'uint8':
        notes.append(DEPTH)
    return Pixels(_to_dtype(array, dtype), tuple(notes), original)


def to_channels(array: np.ndarray, channels: int) -> tuple[np.ndarray, list[str]]:
    """[h, w, any] or [channels, h, w] to [h, w, channels]; other counts only between gray, RGB and RGBA."""
    has = array.shape[-1]
    if array.shape[0] == channels and has not in (channels, 1, 3, 4):
        return np.moveaxis(array, 0, -1), []
    if has == channels:
        return array, []
    if has == 1 and channels == 3:
        return array.repeat(3, -1), [GRAY]
    if has == 4 and channels == 3:
        return array[..., :3], [ALPHA]
    if has in (3, 4) and channels == 1:
        gray = array[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow
        return (gray if array.dtype == np.float32 else np.round(gray)).astype(array.dtype)[..., None], [COLOUR]
    raise Unreadable(f'{has} channels, but data.channels={channels}')


def shrink(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, C] to [*size, C] with antialias, dtype kept; identity if it has this size."""
    if array.shape[:2] == size:
        return array
    planes = [Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in np.moveaxis(array, -1, 0)]
    small = np.stack([np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC)) for plane in planes], -1)
    if array.dtype == np.float32:
        return small
    return np.clip(np.round(small), 0, np.iinfo(array.dtype).max).astype(array.dtype)


def _to_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """Full range of one type to full range of the other; float records have no range, so they stay float."""
    if array.dtype == dtype:
        return array
    if array.dtype == np.float32:
        raise Unreadable(f'values are float, but data.dtype={dtype}: set data.dtype=float32')
    if dtype == 'float32':
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    return (array >> 8).astype(np.uint8) if dtype == 'uint8' else array.astype(np.uint16) * 257
