import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import masks, targets
from mim_jax.errors import InputError
from mim_jax.evals import reconstruction
from mim_jax.evals.pictures import HIDDEN_STATISTICS, VISIBLE_STATISTICS
from mim_jax.evals.reconstruction import columns, display
from mim_jax.losses import mse
from mim_jax.objectives import Term
from mim_jax.tokenizers import patches, patchify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def drawn(channels=3, size=(9, 13), patch=(4, 5), norm=False, goal=None):
    """Columns of two random uint8 images with half of the patches hidden; the answers are `goal` of the raw patches."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, *size, channels), np.uint8)
    mean, std = np.resize(MEAN, channels), np.resize(STD, channels)
    image = ((pixels / 255 - mean) / std).astype(np.float32)
    raw = np.asarray(patchify(image, patch))
    asked = np.stack([np.sort(rng.permutation(raw.shape[1])[: raw.shape[1] // 2]) for _ in range(2)]).astype(np.int32)
    hidden = np.zeros(raw.shape[:2], bool)
    np.put_along_axis(hidden, asked, True, axis=1)
    answer = np.take_along_axis(raw if goal is None else goal(raw), asked[..., None], 1)
    found = columns(image, raw, hidden, asked, answer, patch=patch, norm=norm, show=display(mean, std))
    return pixels, hidden, found


def normalised(raw):
    return (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, ddof=1, keepdims=True) + 1e-6)


def pixel_mask(hidden, size, patch):
    """bool[B, h, w] of hidden pixels, by repeating the grid and cutting."""
    grid = hidden.reshape(len(hidden), -(-size[0] // patch[0]), -1)
    return grid.repeat(patch[0], 1).repeat(patch[1], 2)[:, : size[0], : size[1]]


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
@pytest.mark.parametrize('norm', [False, True])
def test_visible_pixels_of_the_paste_are_the_inputs(channels, norm):
    noise = np.random.default_rng(1).normal
    pixels, hidden, found = drawn(channels, norm=norm, goal=lambda raw: noise(size=raw.shape).astype(np.float32))
    covered = pixel_mask(hidden, (9, 13), (4, 5))
    np.testing.assert_array_equal(found[0].images, pixels)
    pastes = [column for column in found if column.name == 'paste']
    assert len(pastes) == 1 + norm
    for paste in pastes:
        np.testing.assert_array_equal(paste.images[~covered], pixels[~covered])
        assert not paste.blank.any()
        assert (paste.images[covered] != pixels[covered]).mean() > 0.9
    np.testing.assert_array_equal(found[1].blank, covered)
    np.testing.assert_array_equal(found[2].blank, ~covered)


def test_perfect_answers_give_the_input_back():
    pixels, _, found = drawn()
    np.testing.assert_array_equal(found[3].images, pixels)


def test_normalised_answers_are_shown_with_and_without_hidden_statistics():
    pixels, hidden, found = drawn(norm=True, goal=normalised)
    assert [(c.name, c.note) for c in found[2:]] == [
        ('prediction', HIDDEN_STATISTICS), ('paste', HIDDEN_STATISTICS),
        ('prediction', VISIBLE_STATISTICS), ('paste', VISIBLE_STATISTICS),
    ]  # fmt: skip
    np.testing.assert_array_equal(found[3].images, pixels)  # only knowing the answer's own statistics gives it back
    covered = pixel_mask(hidden, (9, 13), (4, 5))
    assert (found[5].images[covered] != pixels[covered]).mean() > 0.5


def test_without_hidden_statistics_hidden_pixels_change_nothing():
    answer = np.random.default_rng(2).normal(size=(1, 2, 16)).astype(np.float32)
    image = np.random.default_rng(3).normal(size=(1, 8, 8, 1)).astype(np.float32)
    hidden, asked = np.array([[True, False, False, True]]), np.array([[0, 3]])

    def picture(image):
        raw = np.asarray(patchify(image, (4, 4)))
        return columns(image, raw, hidden, asked, answer, patch=(4, 4), norm=True, show=display([0.5], [0.2]))

    other = image.copy()
    other[:, :4, :4] += 1
    other[:, 4:, 4:] *= 2
    before, after = picture(image), picture(other)
    np.testing.assert_array_equal(before[5].images, after[5].images)
    assert (before[3].images != after[3].images).any()


@pytest.mark.parametrize('norm', [False, True])
def test_evaluator_draws_digits(make_objective, make_params, digits, norm):
    objective = make_objective(norm=norm, depth=1)
    params = make_params(objective, digits)
    evaluate = reconstruction(objective, digits, rows=3)
    page = evaluate(params)['reconstruction']
    assert page.dtype == np.uint8 and page.shape[2] == 3
    assert page.shape[0] > 3 * 144 and page.shape[1] > (6 if norm else 4) * 144
    np.testing.assert_array_equal(page, evaluate(params)['reconstruction'])


@pytest.mark.parametrize('dtype, top', [(np.uint16, 4000), (np.float32, 70.0)])
def test_other_depths_are_stretched_and_said_so(make_objective, make_params, make_data, dtype, top, monkeypatch):
    remarks = []
    module = sys.modules[reconstruction.__module__]
    monkeypatch.setattr(module, 'figure', lambda found, remark: remarks.append((found, remark)))
    image = (np.random.default_rng(0).random((6, 10, 9, 13)) * top).astype(dtype)
    data = make_data(image, np.arange(6) % 2, 2, mean=(0.0,) * 13, std=(1.0,) * 13)
    objective = make_objective(patch=(4, 4), depth=1)
    reconstruction(objective, data, rows=2)(make_params(objective, data))
    ((found, remark),) = remarks
    assert 'Shown: the first three of 13 channels.' in remark and 'Black is' in remark
    assert found[0].images.min() == 0 and found[0].images.max() == 255


def test_a_model_that_answers_no_hidden_pixels_is_refused(make_objective, digits):
    with pytest.raises(InputError, match='none of the terms pixels predicts hidden pixels'):
        reconstruction(make_objective(on='visible'), digits)


def test_everything_asked_is_drawn(make_objective, make_params, digits):
    objective = make_objective(on='all', depth=1)
    assert reconstruction(objective, digits, rows=2)(make_params(objective, digits))['reconstruction'].shape[0] > 288


def test_what_fills_up_a_row_is_not_drawn(make_objective, make_params, digits, monkeypatch):
    objective, seen = make_objective(depth=1).clone(mask=masks.multiblock), []
    monkeypatch.setattr(
        sys.modules['mim_jax.evals.reconstruction'],
        'columns',
        lambda *args, **how: seen.append(args) or columns(*args, **how),
    )
    reconstruction(objective, digits, rows=4)(make_params(objective, digits))
    ((_, _, hidden, asked, prediction),) = [args[:5] for args in seen]
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(4))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    mask = masks.multiblock(keys, (4, 4, 4))
    np.testing.assert_array_equal(hidden, mask.hidden)
    assert not mask.asked.all()
    for row in range(4):
        assert set(asked[row]) == set(np.asarray(mask.target[row])[np.asarray(mask.asked[row])])
        filling = prediction[row][~np.asarray(mask.asked[row])]
        np.testing.assert_array_equal(filling, np.broadcast_to(prediction[row, 0], filling.shape))


def clips(goal=lambda raw: raw, norm=False, channels=3, asked=None, patch=(2, 8, 8)):
    """Columns of two random clips of 4 frames, 16 x 16, half of the cubes hidden; `asked` are answered by `goal`."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 16, 16, channels), np.uint8)
    mean, std = np.resize(MEAN, channels), np.resize(STD, channels)
    video = ((pixels / 255 - mean) / std).astype(np.float32)
    raw = np.asarray(patchify(video, patch))
    hidden = np.tile(np.arange(8) % 2 == 1, (2, 1))
    asked = np.tile(np.array([1, 3, 5, 7] if asked is None else asked), (2, 1))
    answer = np.take_along_axis(goal(raw), asked[..., None], 1)
    return pixels, columns(video, raw, hidden, asked, answer, patch=patch, norm=norm, show=display(mean, std))


def covered(tokens):
    """bool[4, 16, 16]: pixels of these cubes of (2, 8, 8)."""
    grid = np.zeros(8, bool)
    grid[tokens] = True
    return grid.reshape(2, 2, 2).repeat(2, 0).repeat(8, 1).repeat(8, 2)


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_visible_cubes_of_a_paste_are_the_inputs(channels):
    noise = np.random.default_rng(1).normal
    pixels, found = clips(lambda raw: noise(size=raw.shape).astype(np.float32), channels=channels)
    assert [column.name for column in found] == ['input', 'masked', 'prediction', 'paste']
    hidden = covered([1, 3, 5, 7])
    np.testing.assert_array_equal(found[3].images[:, ~hidden], pixels[:, ~hidden])
    assert (found[3].images[:, hidden] != pixels[:, hidden]).mean() > 0.9
    np.testing.assert_array_equal(found[1].blank, np.stack([hidden, hidden]))
    np.testing.assert_array_equal(found[2].blank, ~np.stack([hidden, hidden]))


def test_only_what_is_asked_is_drawn():
    pixels, found = clips(lambda raw: raw * 0, asked=[0, 1, 2, 3])  # 0 and 2 are visible, 5 and 7 are not asked
    assert found[1].note == '50% hidden, 50% asked'
    np.testing.assert_array_equal(found[2].blank[0], ~covered([0, 1, 2, 3]))
    np.testing.assert_array_equal(found[3].blank[0], covered([5, 7]))
    seen = covered([0, 2, 4, 6])
    np.testing.assert_array_equal(found[3].images[:, seen], pixels[:, seen])
    assert (found[3].images[0, covered([1, 3])] == np.round(np.array(MEAN) * 255)).all()


def channel_normalised(raw, channels=3):
    cubes = raw.reshape(*raw.shape[:2], -1, channels)
    return ((cubes - cubes.mean(2, keepdims=True)) / (cubes.std(2, ddof=1, keepdims=True) + 1e-6)).reshape(raw.shape)


def first_frame(raw):
    return raw[..., : raw.shape[-1] // 2]


@pytest.mark.parametrize(
    'norm, goal',
    [(False, lambda raw: raw), (True, normalised), ('channel', channel_normalised)],
    ids=['plain', 'patch', 'channel'],
)
@pytest.mark.parametrize('first', [False, True], ids=['all', 'first'])
def test_perfect_answers_give_the_clip_back(norm, goal, first):
    pixels, found = clips((lambda raw: goal(first_frame(raw))) if first else goal, norm=norm)
    hidden = covered([1, 3, 5, 7])
    expected = pixels[:, [0, 0, 2, 2]] if first else pixels
    np.testing.assert_array_equal(found[3].images[:, hidden], expected[:, hidden])
    np.testing.assert_array_equal(found[3].images[:, ~hidden], pixels[:, ~hidden])
    if norm:
        assert (found[5].images[:, hidden] != expected[:, hidden]).mean() > 0.5


@pytest.fixture
def videos():
    """What an evaluator reads, as far as a reconstruction needs it: 6 clips uint8[4, 16, 16, 1]."""
    rows = np.random.default_rng(0).integers(0, 256, (6, 4, 16, 16, 1), np.uint8)
    return SimpleNamespace(
        val=lambda count: iter([dict(video=rows[:count], valid=np.ones(count, bool))]),
        augment=lambda keys, batch, train: batch | dict(video=(batch['video'] / 255.0 - 0.5) / 0.25),
        mean=(0.5,),
        std=(0.25,),
    )


def clip_objective(make_objective, patch=(2, 8, 8), **options):
    return make_objective(depth=1, **options).clone(tokenizer=partial(patches, key='video', patch=patch))


@pytest.mark.parametrize('norm', [False, True])
def test_evaluator_draws_videos(make_objective, make_params, videos, norm):
    objective = clip_objective(make_objective, norm=norm)
    params = make_params(objective, videos)
    evaluate = reconstruction(objective, videos, rows=2)
    found = evaluate(params)
    assert list(found) == ['reconstruction', 'reconstruction_0', 'reconstruction_1']
    assert all(x.dtype == np.uint8 and x.shape[-1] == 3 for x in found.values())
    lines = 6 if norm else 4
    assert found['reconstruction'].shape[0] > 2 * lines * 112 and found['reconstruction'].shape[1] > 4 * 112
    assert found['reconstruction_0'].shape[0] == 4 and found['reconstruction_0'].shape[2] > lines * 144
    for name, picture in evaluate(params).items():
        np.testing.assert_array_equal(picture, found[name])


def test_first_frames_of_cubes_are_said_and_repeated(make_objective, make_params, videos, monkeypatch):
    target = partial(targets.pixels, norm='channel', key='video', first=0.5)
    objective = clip_objective(make_objective).clone(terms=dict(pixels=Term(target, mse, 'hidden', 1.0)))
    drawn = []
    monkeypatch.setattr(
        sys.modules[reconstruction.__module__], 'drawings', lambda found, remark: drawn.append((found, remark))
    )
    reconstruction(objective, videos, rows=2)(make_params(objective, videos))
    ((found, remark),) = drawn
    assert remark == 'Predicted: the first 1 of every 2 frames; the others repeat it.'
    assert [column.note for column in found[2:]] == [HIDDEN_STATISTICS] * 2 + [VISIBLE_STATISTICS] * 2
    np.testing.assert_array_equal(found[2].images[:, 0::2], found[2].images[:, 1::2])
    assert (found[2].images[:, 0] != found[2].images[:, 2]).any()


def test_few_videos_unless_told(make_objective, make_params, videos):
    objective = clip_objective(make_objective)
    assert len(reconstruction(objective, videos)(make_params(objective, videos))) == 1 + 4


def test_what_is_no_image_is_refused(make_objective, digits):
    with pytest.raises(InputError, match=r'not what config.tokenizer.patch \(4,\) cuts'):
        reconstruction(clip_objective(make_objective, patch=(4,)), digits)
