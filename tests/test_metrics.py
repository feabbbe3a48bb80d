import json
import logging
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import RunError
from mim_jax.metrics import Compilations, Writer, feature_health


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tensorboard_records(folder):
    """(step, tag, value) of every scalar in the event files, by the TFRecord framing."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob('events.out.tfevents*')):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], 'little')
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_one_line_a_step(tmp_path):
    writer = Writer(tmp_path)
    writer.scalars(1, {'train/loss': jnp.float32(0.5), 'train/lr': 1e-3})
    writer.scalars(2, {'train/loss': np.float32('nan')})
    writer.close()
    assert lines(tmp_path / 'metrics.jsonl') == [
        {'step': 1, 'train/loss': 0.5, 'train/lr': 1e-3},
        {'step': 2, 'train/loss': None},
    ]


def test_resume_drops_later_steps_and_a_broken_line(tmp_path):
    writer = Writer(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, {'train/loss': step})
        writer.event('save', step=step)
    for name in ('metrics.jsonl', 'events.jsonl'):
        with (tmp_path / name).open('a') as file:
            file.write('{"step": 4, "tra')  # killed inside a write
    writer = Writer(tmp_path, step=2)
    writer.scalars(3, {'train/loss': 30})
    writer.event('restore', step=2)
    assert [(x['step'], x['train/loss']) for x in lines(tmp_path / 'metrics.jsonl')] == [(1, 1), (2, 2), (3, 30)]
    assert [(x['event'], x['step']) for x in lines(tmp_path / 'events.jsonl')] == [
        ('save', 1),
        ('save', 2),
        ('save', 3),
        ('restore', 2),
    ]
    assert not list(tmp_path.glob('*.tmp'))


def test_rewind(tmp_path):
    writer = Writer(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, {'train/loss': step})
    writer.rewind(1)
    writer.scalars(2, {'train/loss': 20})
    assert [x['train/loss'] for x in lines(tmp_path / 'metrics.jsonl')] == [1, 20]


def test_tensorboard_has_the_same_names(tmp_path):
    writer = Writer(tmp_path, config={'seed': 0})
    writer.scalars(7, {'train/loss': 0.5})
    writer.images(7, {'reconstructions': np.zeros((4, 4, 3), np.uint8)})
    found = tensorboard_records(tmp_path)
    assert (7, 'train/loss', 0.5) in found
    assert {tag for _, tag, _ in found} >= {'reconstructions', 'config/text_summary'}


class FakeWandb(types.ModuleType):
    """Enough of wandb; `online` fails as it does without a network or a key."""

    def __init__(self, online):
        super().__init__('wandb')
        self.util = types.SimpleNamespace(generate_id=lambda: 'abc')
        self.starts, self.logged, self._online = [], [], online

    def init(self, mode='online', **options):
        if mode == 'online' and not self._online:
            raise RuntimeError('no API key')
        self.starts.append((mode, options['id'], options['resume']))
        return types.SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=lambda: None)


@pytest.mark.parametrize('online', [True, False])
def test_wandb_keeps_its_id(tmp_path, monkeypatch, online):
    fake = FakeWandb(online)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    for step in (1, 2):
        writer = Writer(tmp_path, step=step - 1, wandb='project')
        writer.scalars(step, {'train/loss': step})
        writer.close()
    assert fake.starts == [('online' if online else 'offline', 'abc', 'allow')] * 2
    assert fake.logged == [(1, {'train/loss': 1}), (2, {'train/loss': 2})]


def test_without_wandb_there_is_one_warning_and_json(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with caplog.at_level(logging.WARNING):
        writer = Writer(tmp_path, wandb='project')
        writer.scalars(1, {'train/loss': 1})
    assert [record.getMessage() for record in caplog.records] == [
        "no Weights & Biases, metrics.jsonl has everything: pip install 'mim_jax[wandb]'"
    ]
    assert lines(tmp_path / 'metrics.jsonl') == [{'step': 1, 'train/loss': 1}]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(RunError, match='file could not be written'):
        Writer(tmp_path / 'file')


def test_compilations_are_counted_by_name():
    seen = []
    counted = Compilations(lambda *about: seen.append(about[:2]))

    @jax.jit
    def my_step(x):
        return x + 1

    for shape in ((2,), (2,), (3,)):
        my_step(np.zeros(shape))
    counted.close()
    my_step(np.zeros(4))
    assert counted.counts['my_step'] == 2
    assert [about for about in seen if about[0] == 'my_step'] == [('my_step', 1), ('my_step', 2)]


def test_effective_rank_of_known_spectra():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 16)))[0].T  # [16, 64], orthonormal rows
    assert feature_health(basis)['features/rank'] == pytest.approx(16, rel=1e-3)
    assert feature_health(basis[:4])['features/rank'] == pytest.approx(4, rel=1e-3)
    share = np.array([0.5, 0.25, 0.25])
    assert feature_health(share[:, None] * basis[:3])['features/rank'] == pytest.approx(
        np.exp(1.5 * np.log(2)), rel=1e-3
    )


def test_collapse_and_health():
    rng = np.random.default_rng(0)
    collapsed = feature_health(np.tile(rng.normal(size=(1, 32)), (100, 1)))
    assert collapsed['features/std'] == pytest.approx(0, abs=1e-6)
    assert collapsed['features/rank'] == pytest.approx(1, abs=1e-3)
    healthy = feature_health(3 * rng.normal(size=(200, 32)))
    assert healthy['features/std'] == pytest.approx(3, rel=0.05)
    assert healthy['features/rank'] > 28
    assert np.isnan(list(feature_health(np.full((4, 4), np.nan)).values())).all()
