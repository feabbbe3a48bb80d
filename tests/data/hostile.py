"""A folder of videos of which two are good and eight cannot be used, and why."""

import os
from pathlib import Path

from tests.data.videos import cut, write, write_sound

GOOD = ('good.mkv', 'good.mp4')
REASONS = {
    'cut_good.mp4': 'without its index',
    'cut_whole.mp4': 'can be read up to',
    'empty.mp4': r'empty file \(0 bytes\)',
    'noise.mp4': 'not a video',
    'one.mp4': 'only one frame',
    'sound.m4v': 'no video stream, audio only',
    'stalls.mkv': 'the decoder took longer than',
    'text.mp4': "not a video: starts with b'these are wo'",
}


def hostile(root: Path, frames: int = 20, size=(32, 64)) -> Path:
    """Each file of `REASONS` and of `GOOD`; the end of stalls.mkv is behind a hole of a terabyte, which takes hours to search."""
    root.mkdir(exist_ok=True)
    for name in GOOD:
        write(root / name, frames, size=size)
    cut(root / 'good.mp4', 0.5)
    cut(write(root / 'whole.mp4', 5 * frames, size=size, movflags='faststart'), 0.7)
    (root / 'whole.mp4').unlink()
    (root / 'empty.mp4').touch()
    (root / 'noise.mp4').write_bytes(bytes(range(7, 250)) * 40)
    write(root / 'one.mp4', 1, size=size)
    write_sound(root / 'sound.m4v', 'aac')
    os.truncate(write(root / 'stalls.mkv', 3, size=size), 1 << 40)
    (root / 'text.mp4').write_text('these are words\n' * 20)
    return root
