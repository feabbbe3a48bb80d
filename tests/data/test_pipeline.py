"""The order of samples depends on (seed, global sample index) alone."""

import os
import subprocess
import sys
import time
from functools import partial
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from mim_jax.data import ImageReader, hold_out, open_source, pipeline
from mim_jax.data.pipeline import shuffled
from mim_jax.errors import InputError

OPTIONS = dict(canvas=(32, 32))


def with_reader(stream, source, **options):
    reader = {key: options.pop(key) for key in ('channels', 'dtype', 'canvas') if key in options}
    return stream(source, ImageReader(**reader), **options)


batches, one_pass = (partial(with_reader, stream) for stream in (pipeline.batches, pipeline.one_pass))


@pytest.fixture
def numbered(tmp_path):
    """23 records whose pixels and label say which one they are."""
    np.savez(
        tmp_path / 'n.npz',
        images=np.arange(23, dtype=np.uint8)[:, None, None] + np.zeros((23, 4, 4), np.uint8),
        labels=np.arange(23),
    )
    return open_source(str(tmp_path / 'n.npz'))


def labels(stream, count=None):
    return np.stack([batch['label'] for batch, _ in islice(stream, count)])


def test_every_sample_once_an_epoch_in_another_order(numbered):
    got = labels(batches(numbered, batch_size=23, seed=3, steps=4, channels=1, **OPTIONS))
    for epoch in got:
        assert sorted(epoch) == list(range(23))
    assert len({tuple(epoch) for epoch in got}) == 4
    crossing = labels(batches(numbered, batch_size=5, seed=3, steps=9, channels=1, **OPTIONS)).ravel()
    np.testing.assert_array_equal(crossing, got.ravel()[:45])  # the batch size does not change the order


def test_seeds_have_orders_of_their_own():
    orders = {tuple(shuffled(epoch * 50 + i, 50, seed) for i in range(50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_change_neither_batches_nor_reports(hostile, workers):
    options = dict(batch_size=4, steps=5, canvas=(24, 32))
    plain = list(batches(open_source(str(hostile)), **options))
    other = list(batches(open_source(str(hostile)), workers=workers, **options))
    assert len(other) == 5 and any(report.bad for _, report in other)
    for (a, first), (b, second) in zip(plain, other, strict=True):
        assert first == second
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


SCRIPT = """
import os, signal, sys
from multiprocessing import active_children
from mim_jax.data import ImageReader, batches, open_source
from mim_jax.errors import RunError
if __name__ == '__main__':
    reader = ImageReader(channels=1, canvas=(8, 8))
    stream = batches(open_source('builtin:digits'), reader, batch_size=8, workers=1)
    next(stream)
    worker = active_children()[0].pid
    os.kill(worker, signal.SIGTERM)  # is for the trainer
    for _ in range(20):
        next(stream)
    print(worker, flush=True)
    os.kill(os.getpid() if sys.argv[1] == 'trainer' else worker, signal.SIGKILL)
    try:
        for _ in range(100):
            next(stream)
    except RunError as error:
        print(error)
"""


@pytest.mark.parametrize('killed', ['trainer', 'worker'])
def test_workers_go_with_the_trainer_and_their_death_is_told(tmp_path, killed):
    (tmp_path / 'script.py').write_text(SCRIPT)
    environment = os.environ | dict(PYTHONPATH=os.getcwd())
    done = subprocess.run(
        [sys.executable, 'script.py', killed],
        cwd=tmp_path,
        env=environment,
        text=True,
        timeout=120,
        stdout=subprocess.PIPE,
    )
    worker, *rest = done.stdout.splitlines()
    if killed == 'worker':
        assert done.returncode == 0 and rest[0].startswith('a decoding process ended')
    deadline = time.time() + 20
    while os.path.exists(f'/proc/{worker}') and time.time() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f'/proc/{worker}')


def test_two_hosts_share_the_batch_of_one(numbered):
    whole = labels(batches(numbered, batch_size=6, steps=5, channels=1, **OPTIONS))
    halves = [
        labels(batches(numbered, batch_size=6, steps=5, channels=1, process_index=i, process_count=2, **OPTIONS))
        for i in (0, 1)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(halves, 1))


def test_a_host_reads_the_rows_it_is_told(numbered):
    whole = labels(batches(numbered, batch_size=6, steps=5, channels=1, **OPTIONS))
    rows = [0, 1, 4]
    some = labels(batches(numbered, batch_size=6, steps=5, channels=1, rows=rows, **OPTIONS))
    np.testing.assert_array_equal(some, whole[:, rows])


@pytest.mark.parametrize('start', [0, 6, 30, 31])
def test_a_restart_goes_on_where_it_was(numbered, start):
    whole = labels(batches(numbered, batch_size=6, steps=12, channels=1, **OPTIONS)).ravel()
    rest = labels(batches(numbered, batch_size=6, start=start, steps=3, channels=1, **OPTIONS)).ravel()
    np.testing.assert_array_equal(rest, whole[start : start + 18])


def test_a_batch_larger_than_the_source(numbered):
    (batch, report), *_ = batches(numbered, batch_size=50, steps=1, channels=1, **OPTIONS)
    assert batch['valid'].all() and sorted(set(batch['label'])) == list(range(23)) and report.seen == 50


def test_one_pass_gives_each_record_once_in_order(numbered):
    for count in (1, 2):
        hosts = [
            list(one_pass(numbered, batch_size=10, channels=1, process_index=i, process_count=count, **OPTIONS))
            for i in range(count)
        ]
        label = np.concatenate([np.stack([b['label'] for b, _ in host]) for host in hosts], 1).ravel()
        valid = np.concatenate([np.stack([b['valid'] for b, _ in host]) for host in hosts], 1).ravel()
        np.testing.assert_array_equal(label[valid], np.arange(23))
        assert len(label) == 30 and (label[~valid] == -1).all()
        assert sum(report.seen for host in hosts for _, report in host) == 23


def test_the_batch_has_the_pixels_in_the_corner_of_the_canvas(flat):
    (batch, _), *_ = batches(open_source(str(flat)), batch_size=3, steps=1, shuffle=False, canvas=(40, 48))
    assert batch['image'].shape == (3, 40, 48, 3) and batch['image'].dtype == np.uint8
    np.testing.assert_array_equal(batch['size'], [[24, 32]] * 3)
    for row, image in enumerate(batch['image']):
        np.testing.assert_array_equal(image[:24, :32], np.asarray(Image.open(flat / f'{row:02}.png')))
        assert not image[24:].any() and not image[:, 32:].any()


def test_a_bad_record_leaves_its_row_and_moves_no_other(flat):
    options = dict(batch_size=5, steps=2, seed=1, canvas=(24, 32))
    good = list(batches(open_source(str(flat)), **options))
    (flat / '03.png').write_bytes(b'no picture at all')
    seen, bad = list(batches(open_source(str(flat)), **options)), []
    for (a, _), (b, report) in zip(good, seen, strict=True):
        np.testing.assert_array_equal(a['image'][b['valid']], b['image'][b['valid']])
        assert not b['image'][~b['valid']].any() and (b['label'][~b['valid']] == -1).all()
        assert (~b['valid']).sum() == len(report.bad)
        bad += report.bad
    assert [name for name, _ in bad] == ['03.png'] and 'not an image' in bad[0][1]


def test_a_file_that_vanished_is_a_bad_record(flat):
    source = open_source(str(flat))
    (flat / '05.png').unlink()
    bad = [entry for _, report in one_pass(source, batch_size=4, **OPTIONS) for entry in report.bad]
    assert [name for name, _ in bad] == ['05.png'] and 'No such file' in bad[0][1]


def test_hostile_folder(hostile):
    (batch, report), *_ = one_pass(open_source(str(hostile)), batch_size=10, canvas=(24, 32))
    reasons = dict(report.bad)
    assert reasons.keys() == {'truncated.jpg', 'zero.png', 'text.jpg', 'one.png'}
    assert 'truncated' in reasons['truncated.jpg'] and 'empty' in reasons['zero.png']
    assert 'not an image' in reasons['text.jpg'] and '1 x 1' in reasons['one.png']
    notes = dict(report.notes)
    assert notes['gray.png'] == 'grayscale repeated to RGB' and notes['cmyk.jpg'] == 'CMYK converted to RGB'
    assert {kind for name, kind in report.notes if name == 'deep.png'} == {
        '16 bits reduced to 8',
        'grayscale repeated to RGB',
    }
    assert notes['moving.webp'] == 'first frame of an animation'
    assert batch['valid'].sum() == 6 and report.seen == 10


def test_a_batch_the_hosts_cannot_share(numbered):
    with pytest.raises(InputError, match='batch_size=7 does not divide by the 2 hosts'):
        batches(numbered, batch_size=7, process_count=2, **OPTIONS)


def test_an_unknown_dtype(numbered):
    with pytest.raises(InputError, match='float16'):
        batches(numbered, batch_size=7, dtype='float16', **OPTIONS)


def test_hold_out_is_a_fixed_split(numbered):
    train, val = hold_out(numbered, 0.2)
    assert len(val) == 5 and sorted([train[i].label for i in range(18)] + [val[i].label for i in range(5)]) == list(
        range(23)
    )
    again = hold_out(numbered, 0.2)[1]
    assert [val[i].name for i in range(5)] == [again[i].name for i in range(5)]
    assert len(hold_out(numbered, 0.001)[1]) == 1
    with pytest.raises(InputError, match='empty'):
        hold_out(numbered, 0.99)
