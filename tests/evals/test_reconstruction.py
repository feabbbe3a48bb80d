import sys

import numpy as np
import pytest
from PIL import Image

from mim_jax.errors import InputError
from mim_jax.evals import reconstruction
from mim_jax.evals.reconstruction import HIDDEN_STATISTICS, VISIBLE_STATISTICS, Column, columns, display, figure, save
from mim_jax.tokenizers import patchify

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


def test_the_figure_enlarges_by_whole_pixels_and_marks_blanks_in_colour():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    blank = np.zeros((2, 8, 8), bool)
    blank[0, :4] = True
    page = figure([Column('input', '', images, blank)])
    top = int(np.argmax((page != 255).any(-1)[40:].any(1))) + 40
    cell = page[top : top + 144, 16 : 16 + 144]
    np.testing.assert_array_equal(cell[::18, ::18][4:], np.repeat(images[0, 4:], 3, -1))
    assert (cell[:72] == cell[0, 0]).all() and len(set(cell[0, 0].tolist())) == 3


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


def test_save_makes_the_folder_and_leaves_one_file(tmp_path):
    page = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    save(page, tmp_path / 'reconstructions' / '100.png')
    assert [path.name for path in (tmp_path / 'reconstructions').iterdir()] == ['100.png']
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'reconstructions' / '100.png')), page)
