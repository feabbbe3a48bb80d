"""Which evaluations run when, and the table at the end."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mim_jax import build, evals
from mim_jax.errors import InputError
from mim_jax.evals.data import LabelledData
from mim_jax.evaluate import Evaluation, table


class Writer:
    def __init__(self, workdir):
        self.workdir, self.pictures = workdir, []

    def scalars(self, step, values):
        with (self.workdir / 'metrics.jsonl').open('a') as file:
            file.write(json.dumps(dict(step=step) | values) + '\n')

    def images(self, step, pictures):
        self.pictures += pictures


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """`evaluation(often, last, **attributes of data) -> (Evaluation, writer, lines said)`, with evaluators that say what they were given."""

    def make(often=('near',), last=('far',), unlabelled='', val_source=()):
        def number(objective, data, *, name='a', times=1):
            return lambda params: {f'eval/{name}': params * times}

        def picture(objective, data):
            return lambda params: {'drawing': np.full((4, 4, 3), 7, np.uint8)}

        monkeypatch.setattr(evals, 'number', number, raising=False)
        monkeypatch.setattr(evals, 'picture', picture, raising=False)
        monkeypatch.setattr(evals, '__all__', ['number', 'picture'])
        monkeypatch.setattr('mim_jax.evaluate.LABEL_FREE', ('picture',))
        specs = dict(near=dict(name='number'), far=dict(name='number', times=10), draw=dict(name='picture'))
        config = ConfigDict(dict(evals=specs, evals_often=often, evals_last=last))
        said = []
        data = SimpleNamespace(
            path='DIR', unlabelled=unlabelled, val_source=val_source, labelled=LabelledData(*[None] * 8)
        )
        return Evaluation(config, None, data, tmp_path, SimpleNamespace(say=said.append)), Writer(tmp_path), said

    return make


def state(step, params=1.0, ema=None):
    return SimpleNamespace(step=step, params=params, ema=ema)


def test_some_run_often_and_all_at_the_end(evaluation):
    found, writer, said = evaluation()
    assert found.during(state(0), writer) == {'eval/a': 1.0}
    found.final(state(9, ema=3.0), writer)
    assert [json.loads(line) for line in (writer.workdir / 'metrics.jsonl').read_text().splitlines()] == [
        {'step': 0, 'eval/a': 1.0},
        {'step': 9, 'eval/a': 30.0},  # the average of the parameters where there is one
    ]
    assert said[:3] == ['step 0  near: a 1', 'step 9  near: a 3', 'step 9  far: a 30'] and said[3].startswith('|')


def test_a_run_says_which_evaluations_are_of_what_it_was_trained_on(evaluation):
    said = evaluation(often=('near', 'draw'), unlabelled='no labels', val_source=None)[2]
    why = 'as DIR has no validation records: set data.val_path or data.holdout'
    assert said == ['without far, near: no labels', f'warning: draw will be of the training records, {why}']
    assert not evaluation(often=('draw',), last=())[2]


def test_the_end_is_measured_once_unless_asked_again(evaluation):
    found, writer, said = evaluation()
    for again in (False, False, True):
        found.final(state(9), writer, again=again)
    assert (
        len((writer.workdir / 'metrics.jsonl').read_text().splitlines()) == 2
        and len([line for line in said if line.startswith('|')]) == 3
    )
    assert found.measured(9) and not found.measured(8)


def test_pictures_go_to_their_folder(evaluation, tmp_path):
    found, writer, _ = evaluation(often=('draw',), last=())
    assert found.during(state(3), writer) == {}
    assert np.asarray(Image.open(tmp_path / 'drawings' / '3.png')).shape == (4, 4, 3) and writer.pictures == ['drawing']
    assert not (tmp_path / 'metrics.jsonl').exists()


def test_without_labels_it_says_what_it_leaves_out(evaluation):
    found, writer, said = evaluation(often=('draw', 'near'), last=('far',), unlabelled='DIR has no labels')
    assert said == ['without far, near: DIR has no labels']
    assert found.during(state(3), writer) == {}


def test_an_unknown_name(evaluation):
    with pytest.raises(InputError, match="config.evals has no 'nera'. Did you mean 'near'?"):
        evaluation(often=('nera',))


def test_an_unknown_option():
    with pytest.raises(InputError, match="config.evals.knn.kk: knn takes no such option. Did you mean 'k'?"):
        build.part('evals', dict(name='knn', kk=3), where='evals.knn', bind=False, objective=None, data=None)


def test_the_table_compares_with_the_start(tmp_path):
    lines = [
        {'step': 0, 'eval/knn_top1': 0.5},
        {'step': 1, 'train/loss': 3.0, 'baseline/mean_predictor_loss': 1.0},
        {'step': 8, 'train/loss': 0.25, 'baseline/mean_predictor_loss': None, 'eval/attentive_top1': 0.4},
        {'step': 8, 'eval/knn_top1': 0.875, 'eval/linear_top1': 0.9, 'eval/linear_top1_untrained': 0.6},
    ]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (tmp_path / 'reconstructions').mkdir()
    for step in (0, 8):
        (tmp_path / 'reconstructions' / f'{step}.png').touch()
    header, _, *rows, pictures, everything = table(tmp_path).splitlines()
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
    assert [cell.strip() for cell in header.strip('|').split('|')] == ['', 'untrained', 'trained']
    assert cells == [
        ['loss', '3.0000', '0.2500'],
        ['loss of the mean predictor', '1.0000', '1.0000'],
        ['kNN top-1', '0.5000', '0.8750'],
        ['linear probe top-1', '0.6000', '0.9000'],
        ['attentive probe top-1', '', '0.4000'],
    ]
    assert len({len(row) for row in rows}) == 1
    assert pictures == f'pictures: {tmp_path}/reconstructions/8.png' and everything == f'everything: {tmp_path}'


def test_what_was_not_measured_at_the_start_has_no_untrained_value(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 8, "eval/knn_top1": 0.875}\n')
    assert table(tmp_path).splitlines()[2].split() == ['|', 'kNN', 'top-1', '|', '|', '0.8750', '|']


def test_another_number_of_classes_is_named(evaluation, tmp_path):
    data = SimpleNamespace(unlabelled='', path='DIR', val_source=(), labelled=LabelledData(*[None] * 3, 7, *[None] * 4))
    config = ConfigDict(dict(evals={}, evals_often=(), evals_last=()))
    with pytest.raises(InputError, match='condition.num_classes=10, but DIR has 7 classes'):
        Evaluation(config, SimpleNamespace(num_classes=10), data, tmp_path, SimpleNamespace(say=print))
    Evaluation(config, SimpleNamespace(num_classes=7), data, tmp_path, SimpleNamespace(say=print))
