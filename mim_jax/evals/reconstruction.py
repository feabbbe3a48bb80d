"""Pictures of what a masked model sees and answers: input, masked, prediction, and prediction pasted into the input."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import InputError
from mim_jax.evals.features import everywhere, records, spread
from mim_jax.evals.pictures import HIDDEN_STATISTICS, VISIBLE_STATISTICS, Column, animation, figure, strips
from mim_jax.targets import patch_statistics, pixels
from mim_jax.tokenizers import unpatchify

IMAGES, VIDEOS = 8, 4  # rows of a picture unless told


def pixel_term(objective) -> tuple[str, bool | str]:
    """Name of the first term that answers pixels of hidden tokens, and the `norm` of its target.

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
    norm: bool | str,
    show: Callable,
) -> list[Column]:
    """The columns of the picture. What is hidden and not asked stays blank; 'paste' has the input wherever it is visible.

    Args:
        image: f32[B, h, w, C] or f32[B, T, h, w, C], as the model got it.
        raw: f32[B, N, R], its patches.
        hidden: bool[B, N].
        asked: i32[B, T], where the answers belong.
        prediction: f32[B, T, R], or narrower where only the first frames of each patch are predicted: the others show
            them again.
        patch: (h, w) or (t, h, w) of a patch.
        norm: as of `targets.pixels`. Normalised answers are shown twice: given back the true statistics, which a model
            cannot know that sees the visible patches only, and with those of the visible ones.
        show: f32[..., C] -> uint8.
    """
    width = prediction.shape[-1]

    def spread(x):  # [B, N, R or width or 1] -> the shape of image
        x = np.tile(x, -(-raw.shape[-1] // x.shape[-1]))[..., : raw.shape[-1]]
        return np.asarray(unpatchify(x, patch, image.shape))

    def answers(mean, std):
        full = np.zeros((*raw.shape[:2], width), raw.dtype)
        np.put_along_axis(full, asked[..., None], prediction, axis=1)
        return show(spread(full * std + mean))

    answered = np.zeros_like(hidden)
    np.put_along_axis(answered, asked, True, axis=1)
    drawn, covered = spread(answered[..., None]), spread(hidden[..., None])
    seen, share = show(image), f'{hidden.mean():.0%} hidden'
    share += '' if (answered == hidden).all() else f', {answered.mean():.0%} asked'
    found = [
        Column('input', '', seen, np.zeros_like(covered[..., 0])),
        Column('masked', share, seen, covered[..., 0]),
    ]
    for note, mean, std in statistics(raw[..., :width], hidden, norm, image.shape[-1]) if norm else [('', 0.0, 1.0)]:
        answer = answers(mean, std)
        found.append(Column('prediction', note, answer, ~drawn[..., 0]))
        found.append(
            Column('paste', note or 'visible = input', np.where(covered, answer, seen), (covered & ~drawn)[..., 0])
        )
    return found


def statistics(
    raw: np.ndarray, hidden: np.ndarray, norm: bool | str, channels: int
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(remark, mean, deviation) to undo a norm by: each patch's own f32[B, N, R], and the mean visible one's f32[B, 1, R]."""
    found = patch_statistics(jnp.asarray(raw), **(dict(channels=channels) if norm == 'channel' else {}))
    each = [np.asarray(x).reshape(*raw.shape[:2], -1) for x in found]
    mean, std = (np.tile(x, raw.shape[-1] // x.shape[-1]) for x in each)
    visible = ~hidden[..., None]
    average = [(x * visible).sum(1, keepdims=True) / np.maximum(visible.sum(1, keepdims=True), 1) for x in (mean, std)]
    return [(HIDDEN_STATISTICS, mean, std), (VISIBLE_STATISTICS, *average)]


def display(mean: Sequence[float], std: Sequence[float], low: float = 0.0, high: float = 1.0) -> Callable:
    """f32[..., C] normalised by mean and std -> uint8, `low` black and `high` white."""

    def show(x):
        x = x * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
        return np.round(np.clip((x - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)

    return show


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


def reconstruction(objective, data, *, rows: int | None = None, seed: int = 0) -> Callable:
    """`params -> {name: picture}`: the first `rows` (8 images or 4 videos) of validation, always under the same masks.

    Images give 'reconstruction' uint8[H, W, 3]; videos strips of frames under that name, and each as an animation
    'reconstruction_0', 'reconstruction_1', ... uint8[T, H, W, 3]. Visible patches of 'paste' are the input's pixels
    exactly. Inputs of 8 bits are shown as they are, others stretched to their range, which the remark below then tells.

    Raises:
        InputError: no term predicts pixels, or the input is neither images nor videos.
    """
    term, norm = pixel_term(objective)
    key, patch = (inspect.signature(objective.tokenizer).parameters[name].default for name in ('key', 'patch'))
    if len(patch) not in (2, 3):
        raise InputError(
            f'reconstruction draws images [B, h, w, C] and videos [B, T, h, w, C], '
            f'not what config.tokenizer.patch {tuple(patch)} cuts: take it out of config.evals'
        )
    rows = rows or (IMAGES if len(patch) == 2 else VIDEOS)

    @jax.jit
    def predict(params, batch):
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(batch['valid'])))
        batch = data.augment(keys, batch, train=False)
        out = objective.apply({'params': params}, batch, keys, method='predict')
        asked, prediction, real = (out['terms'][term][name] for name in ('asked', 'prediction', 'real'))
        if real is not None:  # what fills rows up repeats the first, which always is
            asked = jnp.where(real, asked, asked[:, :1])
            prediction = jnp.where(real[..., None], prediction, prediction[:, :1])
        return batch[key], out['tokens'].raw, out['mask'].hidden, asked, prediction

    def evaluate(params: dict) -> dict[str, np.ndarray]:
        batch = records(data.val(rows), rows)
        arrays, dtype = everywhere(predict(params, spread(batch))), batch[key].dtype
        image, raw, *answers = (array[:rows] for array in arrays)
        low, high, remarks = visible_range(image, data, dtype)
        if (width := answers[-1].shape[-1]) < raw.shape[-1]:
            first = patch[0] * width // raw.shape[-1]
            remarks.append(f'Predicted: the first {first} of every {patch[0]} frames; the others repeat it.')
        show = display(data.mean, data.std, low, high)
        found = columns(image, raw, *answers, patch=patch, norm=norm, show=show)
        return drawings(found, '  '.join(remarks))

    return evaluate


def drawings(found: Sequence[Column], remark: str) -> dict[str, np.ndarray]:
    """The pictures of these columns by their names, see `reconstruction`."""
    if found[0].images.ndim == 4:
        return {'reconstruction': figure(found, remark)}
    moving = {f'reconstruction_{i}': animation(found, i, remark) for i in range(len(found[0].images))}
    return {'reconstruction': strips(found, remark)} | moving
