"""Pictures of what a masked model sees and answers: input, masked, prediction, and prediction pasted into the input."""

import inspect
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image, ImageDraw, ImageFont

from mim_jax.errors import InputError
from mim_jax.evals.features import put
from mim_jax.targets import patch_statistics, pixels
from mim_jax.tokenizers import unpatchify

BLANK = (198, 210, 226)  # where nothing is shown; a colour, since grey could be a pixel's
CELL = (
    144,
    288,
)  # longer side of a cell: small images are enlarged to about the first, large ones reduced below the second
MARGIN, GAP, LINE = 16, 8, 17
INK, FAINT, WARNING = (20, 20, 20), (110, 110, 110), (176, 40, 20)
HIDDEN_STATISTICS = 'uses hidden statistics'
VISIBLE_STATISTICS = 'visible statistics only'


class Column(NamedTuple):
    """One column of the picture: heading, remark, images uint8[n, h, w, C], and where they are blank, bool[n, h, w]."""

    name: str
    note: str
    images: np.ndarray
    blank: np.ndarray


def pixel_term(objective) -> tuple[str, bool]:
    """Name of the first term that answers pixels of hidden tokens, and whether its patches are normalised.

    Raises:
        InputError: there is none.
    """
    for name, term in objective.terms.items():
        target = term.target if isinstance(term.target, partial) else partial(term.target)
        if target.func is pixels and term.on != 'visible':
            return name, target.keywords.get('norm', False)
    terms = ', '.join(objective.terms)
    raise InputError(f'none of the terms {terms} predicts hidden pixels: take reconstruction out of config.evals')


def columns(
    image: np.ndarray,
    raw: np.ndarray,
    hidden: np.ndarray,
    asked: np.ndarray,
    prediction: np.ndarray,
    *,
    patch: Sequence[int],
    norm: bool,
    show: Callable,
) -> list[Column]:
    """The columns of the picture.

    Args:
        image: f32[B, h, w, C], as the model got it.
        raw: f32[B, N, R], its patches.
        hidden: bool[B, N].
        asked: i32[B, T], where the answers belong.
        prediction: f32[B, T, R].
        patch: (h, w) of a patch.
        norm: the answers are of patches less their mean over their deviation. They are shown twice: given back the true
            statistics, which a model cannot know that sees the visible patches only, and with those of the visible ones.
        show: f32[B, h, w, C] -> uint8.
    """

    def spread(x):  # [B, N, R or 1] -> [B, h, w, C]
        return np.asarray(unpatchify(np.broadcast_to(x, raw.shape), patch, image.shape))

    def answers(mean, std):
        full = np.zeros_like(raw)
        np.put_along_axis(full, asked[..., None], prediction, axis=1)
        return show(spread(full * std + mean))

    answered = np.zeros_like(hidden)
    np.put_along_axis(answered, asked, True, axis=1)
    drawn, covered = spread(answered[..., None]), spread(hidden[..., None])
    seen = show(image)
    found = [
        Column('input', '', seen, np.zeros_like(covered[..., 0])),
        Column('masked', f'{hidden.mean():.0%} hidden', seen, covered[..., 0]),
    ]
    for note, mean, std in statistics(raw, hidden) if norm else [('', 0.0, 1.0)]:
        answer = answers(mean, std)
        found.append(Column('prediction', note, answer, ~drawn[..., 0]))
        found.append(
            Column('paste', note or 'visible = input', np.where(covered, answer, seen), (covered & ~drawn)[..., 0])
        )
    return found


def statistics(raw: np.ndarray, hidden: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(remark, mean, deviation) to undo a norm by: each patch's own f32[B, N, 1], and the mean visible one's f32[B, 1, 1]."""
    mean, std = (np.asarray(x) for x in patch_statistics(jnp.asarray(raw)))
    visible = ~hidden[..., None]
    average = [(x * visible).sum(1, keepdims=True) / np.maximum(visible.sum(1, keepdims=True), 1) for x in (mean, std)]
    return [(HIDDEN_STATISTICS, mean, std), (VISIBLE_STATISTICS, *average)]


def display(mean: Sequence[float], std: Sequence[float], low: float = 0.0, high: float = 1.0) -> Callable:
    """f32[..., C] normalised by mean and std -> uint8, `low` black and `high` white."""

    def show(x):
        x = x * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
        return np.round(np.clip((x - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)

    return show


def cells(column: Column) -> list[Image.Image]:
    """Its images in RGB, enlarged or reduced by a whole factor; one or two channels show the first in grey."""
    _, h, w, channels = column.images.shape
    enlarge, reduce = max(1, round(CELL[0] / max(h, w))), -(-max(h, w) // CELL[1])
    images = column.images[..., :3] if channels > 2 else column.images[..., :1]
    images = np.where(column.blank[..., None], np.uint8(BLANK), images)
    size = w * enlarge, h * enlarge
    return [Image.fromarray(image).resize(size, Image.Resampling.NEAREST).reduce(reduce) for image in images]


def figure(found: Sequence[Column], remark: str = '') -> np.ndarray:
    """The columns side by side under their headings, a remark below: uint8[H, W, 3]."""
    small, large = ImageFont.load_default(size=12), ImageFont.load_default(size=14)
    pictures = [cells(column) for column in found]
    (wide, tall), rows = pictures[0][0].size, len(pictures[0])
    heading = max(max(small.getlength(column.note), large.getlength(column.name)) for column in found)
    pitch, top = max(wide, int(heading)) + GAP, MARGIN + 2 * LINE + GAP // 2
    width = max(len(found) * pitch - GAP, int(small.getlength(remark))) + 2 * MARGIN
    foot = top + rows * (tall + GAP)
    page = Image.new('RGB', (width, foot + bool(remark) * LINE + MARGIN), 'white')
    pen = ImageDraw.Draw(page)
    for left, column, images in zip(range(MARGIN, width, pitch), found, pictures, strict=False):
        pen.text((left, MARGIN), column.name, INK, large)
        pen.text((left, MARGIN + LINE), column.note, WARNING if column.note == HIDDEN_STATISTICS else FAINT, small)
        for row, image in enumerate(images):
            page.paste(image, (left, top + row * (tall + GAP)))
    pen.text((MARGIN, foot), remark, FAINT, small)
    return np.asarray(page)


def save(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Writes uint8[H, W, 3] as a PNG; folders are made, and a kill leaves no half-written file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix('.tmp')
    Image.fromarray(picture).save(fresh, format='PNG', optimize=True)
    os.replace(fresh, path)


def visible_range(image: np.ndarray, data, dtype: np.dtype) -> tuple[float, float, list[str]]:
    """What is drawn black and what white, in the units of the data, and remarks on what the picture does not show."""
    channels, remarks = image.shape[-1], []
    if channels not in (1, 3):
        remarks = [f'Shown: the first {"three" if channels > 3 else "one"} of {channels} channels.']
    if dtype == np.uint8:
        return 0.0, 1.0, remarks
    image = image * np.asarray(data.std, np.float32) + np.asarray(data.mean, np.float32)
    low, high = float(image.min()), float(image.max())
    return low, high, [*remarks, f'Black is {low:.4g}, white is {high:.4g}.']


def reconstruction(objective, data, *, rows: int = 8, seed: int = 0) -> Callable:
    """`params -> {'reconstruction': uint8[H, W, 3]}`: the first `rows` validation images, always under the same masks.

    Visible patches of 'paste' are the input's pixels exactly. Images of 8 bits are shown as they are, others stretched
    to the range of the inputs, which the remark below then tells.

    Raises:
        InputError: no term predicts pixels, or the input is not an image.
    """
    term, norm = pixel_term(objective)
    patch = inspect.signature(objective.tokenizer).parameters['patch'].default

    @jax.jit
    def predict(params, batch):
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(batch['valid'])))
        batch = data.augment(keys, batch, train=False)
        out = objective.apply({'params': params}, batch, keys, method='predict')
        answer = out['terms'][term]
        return batch['image'], out['tokens'].raw, out['mask'].hidden, answer['asked'], answer['prediction']

    def evaluate(params: dict) -> dict[str, np.ndarray]:
        batch = next(iter(data.val(rows)))
        shape, dtype = batch['image'].shape, batch['image'].dtype
        if len(shape) != 4:
            raise InputError(f'reconstruction draws images [B, h, w, C], not {shape}: take it out of config.evals')
        arrays = multihost_utils.process_allgather(predict(params, put(batch, rows)), tiled=True)
        image, *answers = (np.asarray(array[: shape[0]]) for array in arrays)
        low, high, remarks = visible_range(image, data, dtype)
        show = display(data.mean, data.std, low, high)
        return {
            'reconstruction': figure(columns(image, *answers, patch=patch, norm=norm, show=show), '  '.join(remarks))
        }

    return evaluate
