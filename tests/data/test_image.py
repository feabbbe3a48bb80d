"""Decoding, against Pillow and NumPy."""

from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from mim_jax.data.image import Unreadable, decode, fit, reason
from mim_jax.errors import InputError

rng = np.random.default_rng(0)


def smooth(height, width, channels):
    rows, cols = np.mgrid[:height, :width]
    return np.stack([127 + 100 * np.sin((rows * (c + 1) + cols * 2) / 9) for c in range(channels)], -1).astype(np.uint8)


def encoded(image, kind='PNG', **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def npy(array):
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array, **options):
    file = BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def pixels(data, channels=3, dtype='uint8', canvas=(64, 64), min_side=2):
    return decode(data, channels=channels, dtype=dtype, canvas=canvas, min_side=min_side).array


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP', 'GIF'])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'P', 'CMYK', '1', 'LA'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_formats_and_modes_agree_with_pillow(kind, mode, channels):
    image = Image.fromarray(smooth(20, 30, 4)).convert('RGB' if mode in ('P', 'CMYK') else 'RGBA').convert(mode)
    try:
        data = encoded(image, kind)
    except (OSError, KeyError, ValueError):
        pytest.skip(f'{kind} has no {mode}')
    want = np.asarray(Image.open(BytesIO(data)).convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[channels])).reshape(
        20, 30, channels
    )
    np.testing.assert_array_equal(pixels(data, channels), want)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('canvas', [(64, 64), (10, 64)])
def test_orientation(kind, orientation, canvas):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(24, 36, 3), kind, exif=exif)
    got = decode(data, channels=3, dtype='uint8', canvas=canvas)
    want = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    height, width = fit(want.height, want.width, canvas)
    assert got.original == (want.height, want.width) and got.array.shape == (height, width, 3)
    reference = np.asarray(want.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(got.array - reference).mean() < (0.01 if canvas == (64, 64) else 4)


def test_larger_images_are_reduced_with_aspect_kept_and_smaller_ones_are_not():
    image = Image.fromarray(smooth(75, 50, 3)).resize((200, 300), Image.Resampling.BICUBIC)
    got = pixels(encoded(image, 'JPEG', quality=95), canvas=(64, 64))
    assert got.shape == (64, 43, 3)
    want = np.asarray(image.resize((43, 64), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(got - want).mean() < 3
    np.testing.assert_array_equal(pixels(encoded(smooth(10, 64, 3))), smooth(10, 64, 3))
    assert pixels(encoded(smooth(4, 1000, 3)), canvas=(32, 32)).shape == (1, 32, 3)


def test_reducing_an_array_is_reducing_the_image():
    array = smooth(100, 50, 3)
    want = np.asarray(Image.fromarray(array).resize((20, 40), Image.Resampling.BICUBIC), np.int32)
    assert np.abs(pixels(array, canvas=(40, 40)) - want).max() <= 1
    deep = pixels(array.astype(np.uint16) * 257, dtype='uint16', canvas=(40, 40))
    assert np.abs(deep / 257 - want).max() <= 1


@pytest.mark.parametrize('bands', [2, 4, 13])
@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32'])
def test_many_channels(bands, dtype):
    array = rng.integers(0, 255, (12, 10, bands)).astype(dtype)
    first, options = np.moveaxis(array, -1, 0), dict(photometric='minisblack')
    tiffs = (
        tiff(array, planarconfig='contig', **options),
        tiff(first, planarconfig='separate', **options),
        tiff(first, **options),
    )
    for form in (array, npy(array), npy(first), *tiffs):
        np.testing.assert_array_equal(pixels(form, bands, dtype), array)


def test_depths():
    deep = rng.integers(0, 1 << 16, (8, 9)).astype(np.uint16)
    for data in (encoded(deep), encoded(deep, 'TIFF'), npy(deep), npy(deep.astype('>u2'))):
        np.testing.assert_array_equal(pixels(data, 1, 'uint16')[..., 0], deep)
        np.testing.assert_array_equal(pixels(data, 3, 'uint8'), (deep >> 8)[..., None].repeat(3, -1))
        np.testing.assert_allclose(pixels(data, 1, 'float32')[..., 0], deep / 65535, rtol=1e-6)
    shallow = smooth(8, 9, 3)
    np.testing.assert_array_equal(pixels(encoded(shallow), 3, 'uint16'), shallow.astype(np.uint16) * 257)
    np.testing.assert_allclose(pixels(encoded(shallow), 3, 'float32'), shallow / 255, rtol=1e-6)
    np.testing.assert_array_equal(pixels(np.eye(5, dtype=bool), 1)[..., 0], np.eye(5) * 255)


def test_float_records_stay_as_they_are():
    array = rng.normal(size=(6, 7, 2)).astype(np.float64) * 100
    np.testing.assert_allclose(pixels(array, 2, 'float32'), array, rtol=1e-6)
    with pytest.raises(Unreadable, match='set data.dtype=float32'):
        pixels(array, 2, 'uint8')


def test_gray_of_a_colour_array_is_that_of_pillow():
    array = smooth(9, 8, 3)
    want = np.asarray(Image.fromarray(array).convert('L'), np.int32)
    assert np.abs(pixels(array, 1)[..., 0] - want).max() <= 1


@pytest.mark.parametrize(
    'data, channels, dtype, match',
    [
        (b'', 3, 'uint8', 'empty file'),
        (b'hello world, hello', 3, 'uint8', "not an image: starts with b'hello world,'"),
        (encoded(smooth(1, 1, 3)), 3, 'uint8', '1 x 1 pixels, smaller than data.min_side=2'),
        (encoded(smooth(9, 9, 3)), 12, 'uint8', r'3 channels \(RGB\), but data.channels=12'),
        (npy(np.zeros((9, 9, 5), np.uint8)), 3, 'uint8', '5 channels, but data.channels=3'),
        (npy(np.zeros((2, 9, 9, 5), np.uint8)), 5, 'uint8', r'shape \[2, 9, 9, 5\]'),
        (npy(np.zeros((9, 9), np.int64)), 1, 'uint8', 'values are int64'),
        (np.full((9, 9), np.nan, np.float32), 1, 'float32', 'not all values are finite'),
        (np.zeros((0, 9), np.uint8), 1, 'uint8', 'empty'),
    ],
)
def test_reasons(data, channels, dtype, match):
    with pytest.raises(Unreadable, match=match):
        pixels(data, channels, dtype)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'GIF', 'BMP'])
def test_truncated_files_are_never_read(kind):
    data = encoded(rng.integers(0, 255, (60, 60, 3)).astype(np.uint8), kind)
    with pytest.raises(Exception):  # noqa: B017 - each plugin has its own
        pixels(data[: len(data) * 2 // 3])


def test_a_pickle_is_not_loaded():
    file = BytesIO()
    np.save(file, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match='allow_pickle'):
        pixels(file.getvalue())


def test_deep_colour_png_is_noted_and_not_cut_in_silence():
    cv = pytest.importorskip('imagecodecs', reason='writes 16-bit colour PNG')
    data = cv.png_encode(rng.integers(0, 1 << 16, (8, 8, 3)).astype(np.uint16))
    assert decode(data, channels=3, dtype='uint8', canvas=(8, 8)).notes == ('16 bits reduced to 8',)


def test_without_tifffile_the_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'tifffile', None)
    with pytest.raises(InputError, match=r"pip install 'mim_jax\[tiff\]'"):
        pixels(tiff(np.zeros((8, 8, 5), np.uint8), photometric='minisblack'), 5)


def test_a_decompression_bomb_is_a_reason(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 20)
    with pytest.raises(Image.DecompressionBombError) as caught:
        pixels(encoded(smooth(9, 9, 3)))
    assert reason(caught.value).startswith('DecompressionBombError: Image size (81 pixels)')
