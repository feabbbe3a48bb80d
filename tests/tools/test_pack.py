"""Packing: what goes in comes out."""

import json
import pickle
import threading
from io import BytesIO

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from mim_jax.data import ImageReader, batches, open_source, open_splits
from mim_jax.data.image import Unreadable
from mim_jax.errors import RunError
from mim_jax.tools import pack as tool
from mim_jax.tools.pack import main, recode


def png(array, kind='PNG', **options):
    file = BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def classes(tmp_path):
    for i in range(11):
        path = tmp_path / 'src' / 'ab'[i % 2] / f'{i}.{"jpg" if i % 3 else "png"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30 + i, 3), 20 * i, np.uint8)).save(path)
    return tmp_path / 'src'


@pytest.mark.parametrize('shards', [0, 1, 3, 50])
def test_bytes_names_and_labels_come_back(classes, tmp_path, shards):
    assert main([str(classes), str(tmp_path / 'dst'), '--shards', str(shards)]) == 0
    source, packed = open_source(str(classes)), open_source(str(tmp_path / 'dst'))
    assert len(packed) == 11 and packed.class_names == ['a', 'b'] and packed.num_classes == 2
    assert [tuple(packed[i]) for i in range(11)] == [tuple(source[i]) for i in range(11)]
    index = json.loads((tmp_path / 'dst' / 'index.json').read_text())
    assert (
        len(index['shards']) == {0: 1, 50: 11}.get(shards, shards)
        and index['channels'] == {'3': 11}
        and index['count'] == 11
    )
    assert not list(tmp_path.glob('.*'))
    assert open_source(str(tmp_path / 'dst'), 'none').num_classes == 0


def test_batches_of_the_packed_are_those_of_the_source(classes, tmp_path):
    main([str(classes), str(tmp_path / 'dst'), '--shards', '2'])
    options = dict(reader=ImageReader(canvas=(20, 48)), batch_size=4, steps=4)
    plain = batches(open_source(str(classes)), **options)
    packed = batches(pickle.loads(pickle.dumps(open_source(str(tmp_path / 'dst')))), **options)  # as a worker gets it
    for (a, _), (b, _) in zip(plain, packed, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_splits_are_kept(tmp_path):
    assert main(['builtin:digits', str(tmp_path / 'digits')]) == 0
    for packed, source in zip(open_splits(str(tmp_path / 'digits')), open_splits('builtin:digits'), strict=True):
        assert len(packed) == len(source) and packed.num_classes == 10
        np.testing.assert_array_equal(np.load(BytesIO(packed[7].data)), source[7].data)
        assert packed[7].label == source[7].label


def test_bad_records_are_left_out_and_listed(hostile, tmp_path, capsys):
    assert main([str(hostile), str(tmp_path / 'dst')]) == 0
    out = capsys.readouterr().out
    assert '7 records' in out and '3 left out' in out and 'truncated.jpg: ' in out
    index = json.loads((tmp_path / 'dst' / 'index.json').read_text())
    assert {entry['name'] for entry in index['skipped']} == {'truncated.jpg', 'zero.png', 'text.jpg'}


def test_nothing_is_overwritten(classes, tmp_path, capsys):
    (tmp_path / 'dst').mkdir()
    assert main([str(classes), str(tmp_path / 'dst')]) == 2
    assert 'exists already' in capsys.readouterr().err and not list((tmp_path / 'dst').iterdir())


def test_nothing_readable_leaves_nothing(tmp_path, capsys):
    (tmp_path / 'src').mkdir()
    (tmp_path / 'src' / 'a.jpg').write_text('no')
    assert main([str(tmp_path / 'src'), str(tmp_path / 'dst')]) == 2
    assert 'no readable record' in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ['src']


def test_a_shard_that_lost_bytes_is_noticed(classes, tmp_path, capsys, monkeypatch):
    class Forgetful:
        def __init__(self, *args):
            self.writer, self.close = ArrayRecordWriter(*args), lambda: self.writer.close()

        def write(self, data):
            self.writer.write(data[:-1] + b'?' if b'7.jpg' in data else data)

    monkeypatch.setattr(tool, 'ArrayRecordWriter', Forgetful)
    assert main([str(classes), str(tmp_path / 'dst')]) == 1
    assert 'reads back with other bytes' in capsys.readouterr().err and not (tmp_path / 'dst').exists()


def test_a_disk_that_is_full_is_one_sentence(classes, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(tool, 'ArrayRecordWriter', full)
    assert main([str(classes), str(tmp_path / 'dst')]) == 1
    assert 'No space left on device' in capsys.readouterr().err and not list(tmp_path.glob('.*'))


def test_the_first_of_several_gets_the_name(classes, tmp_path, monkeypatch):
    numbers = iter(range(100))
    monkeypatch.setattr(tool.os, 'getpid', lambda: next(numbers))  # as if each thread were a process
    failed = []

    def run():
        try:
            tool.pack(str(classes), tmp_path / 'dst')
        except (RunError, tool.InputError) as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 2 and len(open_source(str(tmp_path / 'dst'))) == 11 and not list(tmp_path.glob('.*'))


RAMP = np.tile(np.linspace(0, 250, 40, dtype=np.uint8)[:, None, None], (1, 60, 3))


@pytest.mark.parametrize(
    'data, options, kind, size',
    [
        (png(RAMP), dict(), 'PNG', (60, 40)),
        (png(RAMP, 'JPEG'), dict(short_side=20), 'JPEG', (30, 20)),
        (png(RAMP, 'WEBP'), dict(short_side=20), 'PNG', (30, 20)),
        (png(RAMP), dict(short_side=50), 'PNG', (60, 40)),
        (png(RAMP), dict(form='jpeg'), 'JPEG', (60, 40)),
        (png(RAMP, 'JPEG'), dict(form='png', short_side=20), 'PNG', (30, 20)),
        (RAMP, dict(form='png'), 'PNG', (60, 40)),
        (RAMP[..., 0].astype(np.uint16) * 200, dict(form='png', short_side=20), 'PNG', (30, 20)),
    ],
)
def test_recode(data, options, kind, size):
    image = Image.open(BytesIO(recode(data, **options)))
    assert (image.format, image.size) == (kind, size)
    got = np.asarray(image, np.float32)
    want = np.asarray(Image.fromarray(RAMP).resize(size, Image.Resampling.BICUBIC), np.float32)
    if got.ndim == 2:
        got, want = got / 200, want[..., 0]
    assert np.abs(got - want).mean() < 2


def test_recode_keeps_what_it_need_not_change():
    for data in (png(RAMP), png(RAMP, 'JPEG'), png(RAMP, 'WEBP')):
        assert recode(data) is data and recode(data, short_side=40) is data
    bands = np.random.default_rng(0).integers(0, 9999, (40, 60, 5)).astype(np.uint16)
    np.testing.assert_array_equal(np.load(BytesIO(recode(bands))), bands)
    assert np.load(BytesIO(recode(bands, short_side=20))).shape == (20, 30, 5)
    with pytest.raises(Unreadable, match='--format=keep'):
        recode(bands, form='jpeg')


def test_recode_turns_the_picture_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(BytesIO(recode(png(RAMP, 'JPEG', exif=exif), short_side=20)))
    assert image.size == (20, 30) and 'exif' not in image.info


def test_real_images_train_alike_from_both_forms(shared_images, tmp_path):
    """A class folder of variable sizes and its packed form give the same batches."""
    source = open_source(str(shared_images / 'caltech101_test.parquet'))
    for i in range(0, len(source), 20):
        record = source[i]
        path = tmp_path / 'folder' / source.class_names[record.label] / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.data)
    assert main([str(tmp_path / 'folder'), str(tmp_path / 'packed')]) == 0
    options = dict(reader=ImageReader(canvas=(128, 128)), batch_size=16, steps=2)
    forms = [batches(open_source(str(tmp_path / name)), **options) for name in ('folder', 'packed')]
    for (a, report), (b, _) in zip(*forms, strict=True):
        assert a['valid'].all() and not report.bad and (a['size'].max(0) <= 128).all()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
