"""Drawing: columns of images under their headings, strips and animations of videos, and the files they go to."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BLANK = (198, 210, 226)  # where nothing is shown; a colour, since grey could be a pixel's
# Longer side of a cell: small images are enlarged to about the first, large ones reduced below the second.
CELL, FRAME = (144, 288), (112, 160)
MARGIN, GAP, LINE = 16, 8, 17
STRIP = 8  # frames of a strip
FPS = 8  # frames a second of an animation: clips of 25 to 30 fps are usually read at every third or fourth frame
INK, FAINT, WARNING = (20, 20, 20), (110, 110, 110), (176, 40, 20)
SMALL, LARGE = ImageFont.load_default(size=12), ImageFont.load_default(size=14)
HIDDEN_STATISTICS = 'uses hidden statistics'
VISIBLE_STATISTICS = 'visible statistics only'


class Column(NamedTuple):
    """One column of a picture, or line of a strip: heading, remark, and the images under it.

    Attributes:
        images: uint8[n, h, w, C], or of videos uint8[n, T, h, w, C].
        blank: where they are blank, bool[n, h, w] or bool[n, T, h, w].
    """

    name: str
    note: str
    images: np.ndarray
    blank: np.ndarray

    def pick(self, index) -> 'Column':
        """The same with some of the images."""
        return self._replace(images=self.images[index], blank=self.blank[index])


def cells(column: Column, cell: tuple[int, int] = CELL) -> list[Image.Image]:
    """Its images in RGB, enlarged or reduced by a whole factor; one or two channels show the first in grey."""
    _, h, w, channels = column.images.shape
    enlarge, reduce = max(1, round(cell[0] / max(h, w))), -(-max(h, w) // cell[1])
    images = column.images[..., :3] if channels > 2 else column.images[..., :1]
    images = np.where(column.blank[..., None], np.uint8(BLANK), images)
    size = w * enlarge, h * enlarge
    return [Image.fromarray(image).resize(size, Image.Resampling.NEAREST).reduce(reduce) for image in images]


def heading(pen: ImageDraw.ImageDraw, left: int, top: int, column: Column) -> None:
    """Writes its name and below it the remark."""
    pen.text((left, top), column.name, INK, LARGE)
    pen.text((left, top + LINE), column.note, WARNING if column.note == HIDDEN_STATISTICS else FAINT, SMALL)


def heading_width(found: Sequence[Column]) -> int:
    """Pixels that the longest heading takes."""
    return int(max(max(SMALL.getlength(column.note), LARGE.getlength(column.name)) for column in found)) + 1


def figure(found: Sequence[Column], remark: str = '') -> np.ndarray:
    """Columns of images side by side under their headings, a remark below: uint8[H, W, 3]."""
    pictures = [cells(column) for column in found]
    (wide, tall), rows = pictures[0][0].size, len(pictures[0])
    pitch, top = max(wide, heading_width(found)) + GAP, MARGIN + 2 * LINE + GAP // 2
    width = max(len(found) * pitch - GAP, int(SMALL.getlength(remark))) + 2 * MARGIN
    foot = top + rows * (tall + GAP)
    page = Image.new('RGB', (width, foot + bool(remark) * LINE + MARGIN), 'white')
    pen = ImageDraw.Draw(page)
    for left, column, images in zip(range(MARGIN, width, pitch), found, pictures, strict=False):
        heading(pen, left, MARGIN, column)
        for row, image in enumerate(images):
            page.paste(image, (left, top + row * (tall + GAP)))
    pen.text((MARGIN, foot), remark, FAINT, SMALL)
    return np.asarray(page)


def sheet(images: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """uint8[n, h, w, C] in columns, image i in column i % columns, those of `names` or about as many as rows: uint8[H, W, 3]."""
    names = names or [''] * max(round(len(images) ** 0.5), 1)
    blank = np.zeros(images.shape[:3], bool)
    return figure([Column(name, '', images, blank).pick(slice(i, None, len(names))) for i, name in enumerate(names)])


def strips(found: Sequence[Column], remark: str = '') -> np.ndarray:
    """Videos as film strips, up to 8 frames spread over time: uint8[H, W, 3].

    Under each other for every sample, a line for each column, its heading at the left; a remark below all.
    """
    samples, length = found[0].images.shape[:2]
    shown = np.linspace(0, length - 1, min(length, STRIP)).round().astype(int)
    lines = [[cells(column.pick(i).pick(shown), FRAME) for column in found] for i in range(samples)]
    wide, tall = lines[0][0][0].size
    down, across, left = max(tall, 2 * LINE) + GAP // 2, wide + GAP // 2, MARGIN + heading_width(found) + GAP
    block, top = len(found) * down + 2 * GAP, MARGIN + LINE + GAP // 2
    foot = top + samples * block
    width = max(left + len(shown) * across, MARGIN + int(SMALL.getlength(remark))) + MARGIN
    page = Image.new('RGB', (width, foot + bool(remark) * LINE), 'white')
    pen = ImageDraw.Draw(page)
    for column, t in enumerate(shown):
        pen.text((left + column * across, MARGIN), f'frame {t}', FAINT, SMALL)
    for i, sample in enumerate(lines):
        for line, (column, frames) in enumerate(zip(found, sample, strict=True)):
            y = top + i * block + line * down
            heading(pen, MARGIN, y, column)
            for x, frame in enumerate(frames):
                page.paste(frame, (left + x * across, y))
    pen.text((MARGIN, foot - GAP), remark, FAINT, SMALL)
    return np.asarray(page)


def animation(found: Sequence[Column], sample: int, remark: str = '') -> np.ndarray:
    """One video of the columns over time, side by side under their headings: uint8[T, H, W, 3]."""
    length = found[0].images.shape[1]
    return np.stack([figure([column.pick(sample).pick([t]) for column in found], remark) for t in range(length)])


def file_of(name: str, picture: np.ndarray | str, step: int) -> Path:
    """Where a picture goes: NAMEs/STEP.png, .txt for text; an animation uint8[T, H, W, 3] called NAME_INDEX to NAMEs/STEP_INDEX.gif."""
    if isinstance(picture, str):
        return Path(f'{name}s', f'{step}.txt')
    if picture.ndim == 3:
        return Path(f'{name}s', f'{step}.png')
    kind, _, index = name.rpartition('_')
    return Path(f'{kind}s', f'{step}_{index}.gif')


def save(picture: np.ndarray | str, path: str | os.PathLike) -> None:
    """Writes uint8[H, W, 3] as a PNG, uint8[T, H, W, 3] as an endless GIF, a text as it is; folders are made, and a kill leaves no half-written file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix('.tmp')
    if isinstance(picture, str):
        fresh.write_text(picture)
    elif picture.ndim == 3:
        Image.fromarray(picture).save(fresh, format='PNG')
    else:
        first, *rest = one_palette(picture)
        first.save(fresh, format='GIF', save_all=True, append_images=rest, duration=1000 // FPS, loop=0)
    os.replace(fresh, path)


def one_palette(pages: np.ndarray) -> list[Image.Image]:
    """uint8[T, H, W, 3] in the same 256 colours on every page: with colours of its own each, still parts would flicker."""
    own = np.array([(255, 255, 255), BLANK], np.uint8)
    most = Image.fromarray(pages.reshape(-1, *pages.shape[2:])).quantize(256 - len(own)).getpalette()
    palette = Image.new('P', (1, 1))
    palette.putpalette([*own.flatten().tolist(), *most])

    def indexed(page):
        index = np.array(Image.fromarray(page).quantize(palette=palette, dither=Image.Dither.NONE))
        for i, colour in enumerate(own):  # quantize takes a near colour for the nearest
            index[(page == colour).all(-1)] = i
        image = Image.fromarray(index)
        image.putpalette(palette.getpalette())
        return image

    return [indexed(page) for page in pages]
