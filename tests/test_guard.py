"""The watch over non-finite steps."""

import json

import numpy as np
import pytest

from mim_jax.guard import KEPT, Guard

NAMES = ['encoder/embed/kernel', 'encoder/norm/scale', 'predictor/out/kernel']


class Late:
    """A device value: whoever looks at it before it is ready, waits."""

    def __init__(self, value, ready):
        self.value, self.ready = value, ready

    def __bool__(self):
        assert self.ready[0], 'the loop waited for the device'
        return bool(self.value)

    def __float__(self):
        return float(self.value)


@pytest.fixture
def watch(tmp_path):
    """(guard, its events, `look(step, bad leaves) -> in a row`)."""
    events = []
    guard = Guard(
        tmp_path,
        NAMES,
        lambda kind, **fields: events.append(json.loads(json.dumps(dict(kind=kind, **fields)))),
        skipped=2,
    )

    def look(step, *bad, loss=1.0):
        norms = np.where([i in bad for i in range(3)], np.nan, 1.0)
        finite = not bad and np.isfinite(loss)
        return guard.watch(
            step,
            dict(image=np.full((2, 4), step)),
            dict(finite=finite, leaf_norms=norms, loss=loss, grad_norm=norms.sum()),
        )

    return guard, events, look


def test_names_the_first_bad_parameter_and_keeps_the_batch(watch, tmp_path):
    guard, events, look = watch
    assert [look(1), look(2, 1, 2, loss=np.inf), look(3)] == [0, 0, 1]
    assert guard.flush() == 0 and guard.skipped == 3
    (event,) = events
    kept = tmp_path / 'bad_batches' / '2.npz'
    assert event == dict(
        kind='skipped_step', step=2, parameter='encoder/norm/scale', batch=str(kept), loss='inf', grad_norm='nan'
    )
    np.testing.assert_array_equal(np.load(kept)['image'], np.full((2, 4), 2))


def test_good_rows_are_told_one_step_behind(tmp_path):
    told = []
    guard = Guard(tmp_path, NAMES, None, judge=told.append)
    for step, examples in enumerate((8, 7, 5)):
        guard.watch(step, {}, dict(finite=True, examples=np.int32(examples)))
    assert told == [8, 7]
    guard.flush()
    assert told == [8, 7, 5]


def test_counts_those_in_a_row(watch):
    guard, _, look = watch
    assert [look(1, 0), look(2, 0), look(3), look(4, 0), look(5, 0), look(6, 0)] == [0, 1, 2, 0, 1, 2]
    assert guard.flush() == 3 and guard.skipped == 7
    guard.forget()
    assert guard.flush() == 0 and guard.skipped == 7


def test_a_loss_that_is_not_finite_though_the_gradients_are(watch):
    guard, events, look = watch
    look(1, loss=np.nan)
    guard.flush()
    assert events[0]['parameter'] == 'the loss' and events[0]['loss'] == 'nan'


def test_keeps_only_so_many_batches(watch, tmp_path):
    guard, events, look = watch
    for step in range(30):
        look(step, 0)
    guard.flush()
    assert (
        len(list((tmp_path / 'bad_batches').iterdir()))
        == KEPT - 2
        == sum(event['batch'] is not None for event in events)
    )
    assert len(events) == 30


def test_never_waits_for_the_step_just_launched(watch):
    guard, _, _ = watch
    ready = [False]
    assert guard.watch(1, {}, dict(finite=Late(True, ready))) == 0
    ready[0] = True
    assert guard.watch(2, {}, dict(finite=Late(True, [False]))) == 0
