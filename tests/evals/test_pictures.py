import numpy as np
import pytest
from PIL import Image

from mim_jax.evals.pictures import Column, animation, figure, file_of, save, strips


def test_the_figure_enlarges_by_whole_pixels_and_marks_blanks_in_colour():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    blank = np.zeros((2, 8, 8), bool)
    blank[0, :4] = True
    page = figure([Column('input', '', images, blank)])
    top = int(np.argmax((page != 255).any(-1)[40:].any(1))) + 40
    cell = page[top : top + 144, 16 : 16 + 144]
    np.testing.assert_array_equal(cell[::18, ::18][4:], np.repeat(images[0, 4:], 3, -1))
    assert (cell[:72] == cell[0, 0]).all() and len(set(cell[0, 0].tolist())) == 3


def film(length, size=(8, 8), samples=2, channels=1):
    """A column of random videos and one that is blank in the upper half."""
    videos = np.random.default_rng(0).integers(0, 256, (samples, length, *size, channels), np.uint8)
    blank = np.zeros((samples, length, *size), bool)
    blank[:, :, : size[0] // 2] = True
    return videos, [Column('input', '', videos, np.zeros_like(blank)), Column('masked', '50% hidden', videos, blank)]


def first_cell(page, side):
    """Top left corner of the first square of `side` whose left edge is the first column with a pixel in every row."""
    drawn = (page != 255).any(-1)
    for y, x in np.argwhere(drawn):
        if drawn[y : y + side, x].mean() > 0.95 and drawn[y, x : x + side].mean() > 0.95:
            return y, x


@pytest.mark.parametrize('length, shown', [(1, [0]), (4, [0, 1, 2, 3]), (16, [0, 2, 4, 6, 9, 11, 13, 15])])
def test_strips_show_eight_frames_spread_over_time(length, shown):
    videos, found = film(length)
    page = strips(found)
    top, left = first_cell(page, 112)
    for sample in range(2):
        for place, t in enumerate(shown):
            y, x = top + sample * (2 * 116 + 16), left + place * 116
            for line, rows in ((0, slice(0, 8)), (1, slice(4, 8))):
                cell = page[y + line * 116 :, x:][:112, :112]
                np.testing.assert_array_equal(cell[::14, ::14][rows], np.repeat(videos[sample, t, rows], 3, -1))
            assert len(np.unique(page[y + 116 :, x:][:56, :112].reshape(-1, 3), axis=0)) == 1
    assert left + len(shown) * 116 <= page.shape[1] < left + len(shown) * 116 + 200


def test_large_frames_are_reduced():
    page = strips(film(3, size=(224, 448), samples=1, channels=3)[1])
    assert page.shape[0] < 2 * 90 + 80 and page.shape[1] < 3 * 160 + 150


def test_a_long_remark_fits():
    assert strips(film(1)[1], 'word ' * 60).shape[1] > strips(film(1)[1]).shape[1]


def test_an_animation_is_a_figure_of_every_frame():
    videos, found = film(3)
    pages = animation(found, 1, 'remark')
    assert pages.shape[0] == 3 and pages.dtype == np.uint8
    alone = [
        Column('input', '', videos[1:, 2], np.zeros((1, 8, 8), bool)),
        found[1].pick(slice(1, 2)).pick((slice(None), 2)),
    ]
    np.testing.assert_array_equal(pages[2], figure(alone, 'remark'))


def test_save_makes_the_folder_and_leaves_one_file(tmp_path):
    page = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    save(page, tmp_path / 'reconstructions' / '100.png')
    assert [path.name for path in (tmp_path / 'reconstructions').iterdir()] == ['100.png']
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'reconstructions' / '100.png')), page)


def test_an_animation_is_saved_as_an_endless_gif(tmp_path):
    pages = animation(film(4)[1], 0)
    path = tmp_path / file_of('reconstruction_0', pages, 100)
    save(pages, path)
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob('*.*')] == ['reconstructions/100_0.gif']
    with Image.open(path) as gif:
        assert gif.format == 'GIF' and gif.n_frames == 4 and gif.info['loop'] == 0
        assert 100 <= gif.info['duration'] <= 150  # milliseconds
        for t, page in enumerate(pages):
            gif.seek(t)
            shown = np.asarray(gif.convert('RGB')).astype(int)
            assert shown.shape == page.shape and np.abs(shown - page).mean() < 8
            white = (page == 255).all(-1)
            assert (shown[white] == 255).all()


def test_where_pictures_go():
    still, moving = np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)
    assert file_of('confusion_matrix', still, 7).as_posix() == 'confusion_matrixs/7.png'
    assert file_of('reconstruction_12', moving, 7).as_posix() == 'reconstructions/7_12.gif'
