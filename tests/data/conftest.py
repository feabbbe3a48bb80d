"""Folders of small real files, good and hostile."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[3] / 'shared' / 'data' / 'images'


def picture(seed: int, size=(24, 32), channels: int = 3) -> np.ndarray:
    """u8[h, w, C], smooth, so that JPEG keeps it."""
    rows, cols = np.mgrid[: size[0], : size[1]]
    planes = [127 + 100 * np.sin((rows * (c + 1) + cols * 2 + seed * 7) / 9) for c in range(channels)]
    return np.stack(planes, -1).astype(np.uint8)


@pytest.fixture(scope='session')
def shared_images() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f'the developer data set is not at {SHARED}')
    return SHARED


@pytest.fixture
def flat(tmp_path) -> Path:
    """Ten PNG pictures."""
    root = tmp_path / 'flat'
    root.mkdir()
    for i in range(10):
        Image.fromarray(picture(i)).save(root / f'{i:02}.png')
    return root


@pytest.fixture
def hostile(tmp_path) -> Path:
    """Four files that cannot be trained on, six that can, four of these after a conversion."""
    root = tmp_path / 'hostile'
    root.mkdir()
    Image.fromarray(picture(0)).save(root / 'whole.jpg')
    Image.fromarray(picture(9, (120, 160))).save(root / 'truncated.jpg', quality=95)
    data = (root / 'truncated.jpg').read_bytes()
    (root / 'truncated.jpg').write_bytes(data[: len(data) // 2])
    (root / 'zero.png').write_bytes(b'')
    (root / 'text.jpg').write_text('this is not a picture')
    Image.fromarray(picture(1, (1, 1))).save(root / 'one.png')
    Image.fromarray(picture(2)[..., 0]).save(root / 'gray.png')
    Image.fromarray(picture(3)).convert('CMYK').save(root / 'cmyk.jpg')
    Image.fromarray(picture(4)[..., 0].astype(np.uint16) * 257).save(root / 'deep.png')
    Image.fromarray(picture(5)).save(root / 'plain.webp', lossless=True)
    frames = [Image.fromarray(picture(i)) for i in (6, 7)]
    frames[0].save(root / 'moving.webp', save_all=True, append_images=frames[1:], lossless=True)
    return root
