"""Tables of shares as pictures: of any two things, and of classes and answers."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN = 22, 12
DARK, PALE = np.array((20, 60, 120)), np.array((248, 250, 252))


def heatmap(share: np.ndarray, text: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> np.ndarray:
    """uint8[H, W, 3]: a cell for each of share f[R, C] in [0, 1], the darker the larger, with its text [R, C] on it.

    Args:
        rows, columns: their names.
        title: above it all.
    """
    font = ImageFont.load_default(11)
    width = max(CELL, *(int(font.getlength(cell)) + 8 for cell in text.ravel()))
    label = max(int(font.getlength(name)) for name in (*rows, *columns)) + 8
    left, top = MARGIN + label, MARGIN + 20
    wide, tall = len(columns) * width, len(rows) * CELL
    page = Image.new('RGB', (max(left + wide, MARGIN + int(font.getlength(title))) + MARGIN, top + tall + label + MARGIN), 'white')  # fmt: skip
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, 'black', font)
    for i, name in enumerate(rows):
        middle = top + i * CELL + CELL // 2
        pen.text((left - 6, middle), name, 'black', font, anchor='rm')
        for j in range(len(columns)):
            x, y = left + j * width, top + i * CELL
            colour = tuple((PALE + share[i, j] * (DARK - PALE)).astype(int))
            pen.rectangle((x, y, x + width - 2, y + CELL - 2), fill=colour)
            ink = 'white' if share[i, j] > 0.5 else 'black'
            pen.text((x + width // 2 - 1, y + CELL // 2 - 1), text[i, j], ink, font, anchor='mm')
    below = Image.new('RGB', (label, wide), 'white')  # names of the columns, drawn across and turned
    pen = ImageDraw.Draw(below)
    for j, name in enumerate(columns):
        pen.text((label - 2, j * width + width // 2), name, 'black', font, anchor='rm')
    page.paste(below.rotate(90, expand=True), (left, top + tall + 2))
    return np.asarray(page)


def confusion(matrix: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    """uint8[H, W, 3]: rows are true classes, columns answers; darkness is the share of the row, numbers are counts.

    Args:
        matrix: i64[C, C].
        names: of the classes; None = their numbers.
    """
    names = list(names or map(str, range(len(matrix))))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    title = f'rows: true class, columns: answer, top-1 {np.trace(matrix) / max(matrix.sum(), 1):.1%}'
    return heatmap(share, np.where(matrix, matrix.astype(str), ''), names, names, title)
