"""A confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN = 22, 12
DARK, PALE = np.array((20, 60, 120)), np.array((248, 250, 252))


def confusion(matrix: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    """uint8[H, W, 3]: rows are true classes, columns answers; darkness is the share of the row, numbers are counts.

    Args:
        matrix: i64[C, C].
        names: of the classes; None = their numbers.
    """
    count = len(matrix)
    names = list(names or map(str, range(count)))
    font = ImageFont.load_default(11)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    title = f'rows: true class, columns: answer, top-1 {np.trace(matrix) / max(matrix.sum(), 1):.1%}'
    label = max(int(font.getlength(name)) for name in names) + 8
    left, top = MARGIN + label, MARGIN + 20
    side = count * CELL
    page = Image.new('RGB', (max(left + side, MARGIN + int(font.getlength(title))) + MARGIN, top + side + label + MARGIN), 'white')  # fmt: skip
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, 'black', font)
    for i in range(count):
        middle = top + i * CELL + CELL // 2
        pen.text((left - 6, middle), names[i], 'black', font, anchor='rm')
        for j in range(count):
            x, y = left + j * CELL, top + i * CELL
            colour = tuple((PALE + share[i, j] * (DARK - PALE)).astype(int))
            pen.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=colour)
            if matrix[i, j]:
                ink = 'white' if share[i, j] > 0.5 else 'black'
                pen.text((x + CELL // 2 - 1, y + CELL // 2 - 1), str(matrix[i, j]), ink, font, anchor='mm')
    below = Image.new('RGB', (label, side), 'white')  # names of the columns, drawn across and turned
    pen = ImageDraw.Draw(below)
    for j in range(count):
        pen.text((label - 2, j * CELL + CELL // 2), names[j], 'black', font, anchor='rm')
    page.paste(below.rotate(90, expand=True), (left, top + side + 2))
    return np.asarray(page)
