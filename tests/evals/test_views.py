"""Merged views are the mean of the single ones, and counts are counts."""

from functools import partial

import jax
import numpy as np
import pytest

from mim_jax import augment, build
from mim_jax.errors import InputError
from mim_jax.evals.confusion import confusion
from mim_jax.evals.views import Answers, answers, merged
from mim_jax.models import ViT
from mim_jax.tokenizers import patches

CLASSES, CLIPS, CROPS = 3, 2, 3


@pytest.fixture(scope='module')
def setting():
    encoder = ViT(width=16, depth=1, heads=2, class_token=False)
    tokenizer = partial(patches, key='video', patch=(2, 4, 4))
    task = build.classifier(tokenizer, encoder, CLASSES, 'mean', mixup=0.0, cutmix=0.0, smoothing=0.0)
    view = partial(augment.video, image_size=(8, 8), mean=(0.4,), std=(0.2,), flip=False)
    rng = np.random.default_rng(0)
    batch = dict(
        video=rng.integers(0, 256, (6, 4, 12, 20, 1), np.uint8),
        size=np.tile(np.array([12, 20], np.int32), (6, 1)),
        label=np.repeat(np.array([0, 2, -1], np.int32), CLIPS),
        valid=np.ones(6, bool),
    )
    shown = view(jax.random.key(0), batch, train=False)
    params = task.init(jax.random.key(1), shown, jax.random.split(jax.random.key(2), 6), train=False)['params']
    params['classifier']['head']['kernel'] += jax.random.normal(jax.random.key(3), (16, CLASSES))
    return task, view, params, batch


def test_merged_logits_are_the_mean_of_the_single_views(setting):
    task, view, params, batch = setting
    got = jax.jit(merged(task, view, CLIPS, CROPS))(params, batch)
    answer = jax.jit(lambda rows: task.apply({'params': params}, rows, method='logits')[0])
    single = []
    for clip in range(CLIPS):
        rows = {name: x[clip::CLIPS] for name, x in batch.items()}
        for place in (0.0, 0.5, 1.0):
            single.append(answer(view(jax.random.key(0), rows, train=False, eval_crop=1.0, eval_place=place)))
    assert np.ptp(single, axis=0).min() > 1e-3  # the views do differ
    np.testing.assert_allclose(got, np.mean(single, 0), atol=1e-5)


def test_one_view_is_the_centre_of_the_config(setting):
    task, view, params, batch = setting
    shown = view(jax.random.key(0), batch, train=False)
    want = task.apply({'params': params}, shown, method='logits')[0]
    np.testing.assert_allclose(jax.jit(merged(task, view))(params, batch), want, atol=1e-5)


def test_answers_count_labelled_records_once(setting):
    task, view, params, batch = setting
    short = {name: x[:4] for name, x in batch.items()}
    found = answers(params, [short], 6, task, view, CLIPS)
    assert found.logits.shape == (2, CLASSES) and found.labels.tolist() == [0, 2]
    with pytest.raises(InputError, match='no labelled record'):
        answers(params, [batch | dict(label=np.full(6, -1, np.int32))], 6, task, view, CLIPS)


def test_top1_loss_and_confusion():
    found = Answers(np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])), np.array([0, 1, 1]))
    assert found.top1 == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(-np.log([0.5, 0.2, 0.8]).mean(), rel=1e-5)
    np.testing.assert_array_equal(found.confusion, [[1, 0, 0], [0, 1, 1], [0, 0, 0]])


def test_the_picture_of_a_confusion_matrix_is_dark_where_the_counts_are():
    plain = confusion(np.zeros((3, 3), int), ['left', 'right', 'a longer name'])
    drawn = confusion(np.diag([5, 0, 0]), ['left', 'right', 'a longer name'])
    assert plain.shape[-1] == 3 and plain.dtype == np.uint8
    width = min(plain.shape[1], drawn.shape[1])  # the title of one is longer
    rows, columns = np.nonzero((plain[30:, :width] != drawn[30:, :width]).any(-1))  # below the title
    assert len(rows) and np.ptp(rows) < 24 and np.ptp(columns) < 24  # one cell
