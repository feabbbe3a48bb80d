"""Each kind of source, and how a path chooses one."""

import json
import pickle
import re
import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mim_jax.data import find_splits, open_source, open_splits
from mim_jax.data.sources import parquet as parquet_source
from mim_jax.errors import InputError


def png(seed: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((6, 5, 3), seed, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def write(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))


def shard(path, first, count, metadata=None, **columns):
    images = [dict(bytes=png(first + i), path=f'{first + i}.png') for i in range(count)]
    table = pa.table(dict(image=images, **columns))
    features = {'image': {'_type': 'Image'}} | (metadata or {})
    schema = table.schema.with_metadata({'huggingface': json.dumps({'info': {'features': features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.cast(schema), path, row_group_size=2)


def records(source):
    return [source[i] for i in range(len(source))]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(records(a), records(b), strict=True):
        assert x.name == y.name and x.label == y.label
        np.testing.assert_array_equal(np.asarray(x.data), np.asarray(y.data))


# folders


def test_a_flat_folder_has_no_labels(tmp_path):
    for name in ('b.png', 'a.JPG', '.hidden.png', 'notes.md'):
        write(tmp_path / name)
    source = open_source(str(tmp_path))
    assert [r.name for r in records(source)] == ['a.JPG', 'b.png'] and source.num_classes == 0
    assert [r.label for r in records(source)] == [-1, -1]
    same(source, pickle.loads(pickle.dumps(source)))


def test_a_folder_per_class(tmp_path):
    for name in ('dog/1.png', 'cat/2.png', 'cat/deep/3.png'):
        write(tmp_path / name)
    source = open_source(str(tmp_path))
    assert source.class_names == ['cat', 'dog'] and source.num_classes == 2
    assert [(r.name, r.label) for r in records(source)] == [('cat/2.png', 0), ('cat/deep/3.png', 0), ('dog/1.png', 1)]
    assert open_source(str(tmp_path), 'none').num_classes == 0
    write(tmp_path / 'loose.png')
    assert open_source(str(tmp_path)).num_classes == 0


def test_one_sub_folder_is_no_class(tmp_path):
    write(tmp_path / 'all' / '1.png')
    assert open_source(str(tmp_path)).num_classes == 0


@pytest.mark.parametrize('val', ['val', 'valid', 'validation', 'test'])
def test_train_and_validation_folders_share_their_classes(tmp_path, val):
    for name in ('train/a/1.png', 'train/b/2.png', 'train/c/2.png', f'{val}/b/4.png', f'{val}/c/5.png'):
        write(tmp_path / name)
    train, validation = open_splits(str(tmp_path))
    assert [r.label for r in records(train)] == [0, 1, 2] and [r.label for r in records(validation)] == [1, 2]
    assert validation.class_names == ['a', 'b', 'c']
    write(tmp_path / val / 'z' / '1.png')
    with pytest.raises(InputError, match="class 'z'"):
        open_splits(str(tmp_path))


def test_train_may_be_a_class(tmp_path):
    for name in ('train/1.png', 'car/2.png'):
        write(tmp_path / name)
    assert open_splits(str(tmp_path))[0].class_names == ['car', 'train']


def test_a_holdout_where_there_is_no_validation(tmp_path):
    for i in range(10):
        write(tmp_path / f'{i}.png')
    train, validation = open_splits(str(tmp_path), holdout=0.3)
    assert (len(train), len(validation)) == (7, 3)
    assert open_splits(str(tmp_path))[1] is None
    assert len(open_splits(str(tmp_path), holdout=0.01)[1]) == 1


def test_globs_and_lists(tmp_path):
    for name in ('x/1.png', 'x/2.jpg', 'y/my cat.png'):
        write(tmp_path / name)
    assert len(open_source(str(tmp_path / '**' / '*.png'))) == 2
    (tmp_path / 'list.txt').write_text('# comment\nx/1.png cat\ny/my cat.png\n\nx/2.jpg dog\n')
    source = open_source(str(tmp_path / 'list.txt'))
    assert [(r.name, r.label) for r in records(source)] == [('x/1.png', 0), ('y/my cat.png', -1), ('x/2.jpg', 1)]
    (tmp_path / 'list.csv').write_text('path,kind,label\nx/1.png,b,3\n"y/my cat.png",a,0\n')
    assert [r.label for r in records(open_source(str(tmp_path / 'list.csv')))] == [3, 0]
    assert open_source(str(tmp_path / 'list.csv'), 'kind').class_names == ['a', 'b']
    (tmp_path / 'plain.csv').write_text('x/1.png,7\nx/2.jpg,8\n')
    assert [r.label for r in records(open_source(str(tmp_path / 'plain.csv')))] == [7, 8]
    with pytest.raises(InputError, match='no such column, only path, kind, label'):
        open_source(str(tmp_path / 'list.csv'), 'kinds')


# parquet


def test_parquet_shards_of_a_hub_repository(tmp_path):
    names = {'label': {'_type': 'ClassLabel', 'names': ['no', 'yes']}}
    shard(tmp_path / 'data' / 'train-00000-of-00002.parquet', 0, 5, names, label=[0, 1, 0, 1, 1])
    shard(tmp_path / 'data' / 'train-00001-of-00002.parquet', 5, 3, names, label=[1, None, 0])
    shard(tmp_path / 'data' / 'test-00000-of-00001.parquet', 8, 2, names, label=[0, 1])
    train, test = open_splits(str(tmp_path))
    assert (len(train), len(test)) == (8, 2) and train.class_names == ['no', 'yes']
    for i, record in enumerate(records(train)):
        assert record.data == png(i)
    assert train[6].label == -1 and train[5].name == 'train-00001-of-00002.parquet:0' == train.name(5)
    same(train, pickle.loads(pickle.dumps(train)))
    assert len(open_source(str(tmp_path / 'data' / 'train-*.parquet'))) == 8


def test_parquet_column_of_splits_and_named_labels(tmp_path):
    file = tmp_path / 'all.parquet'
    shard(
        file,
        0,
        6,
        label=list('abcabc'),
        part=[5, 4, 3, 2, 1, 0],
        split=['train', 'test', 'train', 'train', 'test', 'train'],
    )
    train, test = open_splits(str(file))
    assert [r.label for r in records(train)] == [0, 2, 0, 2] and [r.label for r in records(test)] == [1, 1]
    assert test[1].data == png(4) and test[1].name == 'all.parquet:4'
    assert [r.label for r in records(open_source(str(file), 'part'))] == [5, 4, 3, 2, 1, 0]
    with pytest.raises(InputError, match='labels=parts.*only image, label, part, split'):
        open_source(str(file), 'parts')
    with pytest.raises(InputError, match="no row has split 'val'"):
        open_source(f'{file}:val')


def test_parquet_keeps_only_some_row_groups(tmp_path, monkeypatch):
    shard(tmp_path / 'x.parquet', 0, 9)
    monkeypatch.setattr(parquet_source, 'CACHE_BYTES', 300)
    source = open_source(str(tmp_path / 'x.parquet'))
    for i in (0, 8, 3, 0, 5, 8, 1):
        assert source[i].data == png(i)
        assert len(source._cache) <= 2


def test_parquet_with_paths_only(tmp_path):
    write(tmp_path / 'one.png', 7)
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    pq.write_table(pa.table(dict(image=pa.array([dict(bytes=None, path='one.png')], kind))), tmp_path / 'p.parquet')
    assert open_source(str(tmp_path / 'p.parquet'))[0].data == png(7)


def test_parquet_files_of_different_sets_are_not_mixed(tmp_path):
    shard(tmp_path / 'a.parquet', 0, 2, label=[0, 1])
    shard(tmp_path / 'b.parquet', 0, 2, other=[0, 1])
    with pytest.raises(InputError, match='not shards of one data set'):
        open_source(str(tmp_path))


def test_real_parquet(shared_images):
    train = open_source(str(shared_images / 'cifar10_train.parquet'))
    assert len(train) == 50_000 and train.num_classes == 10 and train.class_names[0] == 'airplane'
    assert Image.open(BytesIO(train[49_999].data)).size == (32, 32) and len(train._cache) == 1
    assert find_splits(str(shared_images / 'eurosat_rgb.parquet'))[1].endswith('eurosat_rgb.parquet:test')


# arrays, builtin, optional libraries


@pytest.mark.parametrize('shape', [(7, 5, 4), (7, 5, 4, 6)])
def test_arrays(tmp_path, shape):
    images = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    np.savez(tmp_path / 'a.npz', images=images, labels=np.array(list('abcabca')))
    np.save(tmp_path / 'a.npy', images)
    source = open_source(str(tmp_path / 'a.npz'))
    assert source.class_names == ['a', 'b', 'c'] and source[3].label == 0
    for kind in (source, open_source(str(tmp_path / 'a.npy'))):
        np.testing.assert_array_equal(kind[5].data, images[5])
        same(kind, pickle.loads(pickle.dumps(kind)))
        assert len(pickle.dumps(kind)) < 300  # a worker opens the file, it is not sent the pixels


def test_arrays_that_are_none(tmp_path):
    np.savez(tmp_path / 'bad.npz', image=np.zeros((3, 4)))
    with pytest.raises(InputError, match=r'images are \[3, 4\]'):
        open_source(str(tmp_path / 'bad.npz'))
    np.savez(tmp_path / 'pickle.npz', image=np.array([{}], dtype=object))
    with pytest.raises(InputError, match='pickled'):
        open_source(str(tmp_path / 'pickle.npz'))
    np.savez(tmp_path / 'short.npz', image=np.zeros((3, 4, 4)), label=np.zeros(2, int))
    with pytest.raises(InputError, match='3 images but 2 labels'):
        open_source(str(tmp_path / 'short.npz'))


def test_builtin_digits():
    train, test = open_splits('builtin:digits')
    assert (len(train), len(test), train.num_classes) == (1438, 359, 10)
    assert train[0].data.shape == (8, 8) and train[0].data.dtype == np.uint8
    assert max(train[i].data.max() for i in range(50)) == 255
    assert not {train.name(i) for i in range(1438)} & {test.name(i) for i in range(359)}
    assert open_source('builtin:digits', 'none').num_classes == 0
    with pytest.raises(InputError, match='builtin:digit: there are'):
        open_source('builtin:digit')


def test_saved_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['x', 'y']))

    def make(count):
        images = [dict(bytes=png(i), path=None) for i in range(count)]
        return datasets.Dataset.from_dict(dict(image=images, label=[1] * count), features)

    datasets.DatasetDict(train=make(5), test=make(3)).save_to_disk(tmp_path / 'saved')
    train, test = open_splits(f'hf:{tmp_path / "saved"}')
    assert (len(train), len(test)) == (5, 3) and train.class_names == ['x', 'y']
    assert train[4].data == png(4) and train[4].label == 1
    same(train, pickle.loads(pickle.dumps(train)))
    assert [r.data for r in records(open_splits(str(tmp_path / 'saved'))[1])] == [r.data for r in records(test)]
    with pytest.raises(InputError, match="no split 'val'"):
        open_source(f'hf:{tmp_path / "saved"}:val')


class FakeTFDS:
    """As much of tensorflow_datasets as the source uses."""

    class features:  # noqa: N801 - the library's name
        class Image:
            pass

    class decode:  # noqa: N801
        SkipDecoding = object

    @classmethod
    def builder(cls, name):
        if name != 'toys':
            raise ValueError(f'Dataset {name} not found')
        features = dict(id=object(), image=cls.features.Image(), label=SimpleNamespace(names=['x', 'y'], num_classes=2))
        rows = dict(train=3, test=2)
        read = lambda split, decoders: [dict(image=png(i), label=i % 2) for i in range(rows[split])]  # noqa: E731
        return SimpleNamespace(info=SimpleNamespace(features=list(features.items()), splits=rows), as_data_source=read)


def test_tfds(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', FakeTFDS)
    train, test = open_splits('tfds:toys')
    assert (len(train), len(test), train.class_names) == (3, 2, ['x', 'y'])
    assert train[2].data == png(2) and train[1].label == 1 and train[1].name == 'toys:train:1'
    with pytest.raises(InputError, match='tfds:toy: Dataset toy not found'):
        open_source('tfds:toy')


@pytest.mark.parametrize(
    'path, module, extra', [('tfds:x', 'tensorflow_datasets', 'tfds'), ('hf:x', 'datasets', 'hub')]
)
def test_missing_libraries_name_their_extra(monkeypatch, path, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install 'mim_jax\[{extra}\]'"):
        open_source(path)


# what is wrong is said


def test_a_missing_path_has_the_nearest_name(tmp_path):
    (tmp_path / 'pictures').mkdir()
    with pytest.raises(InputError, match='picture does not exist; did you mean .*pictures'):
        open_source(str(tmp_path / 'picture'))
    with pytest.raises(InputError, match='did you mean .*pictures'):
        open_source(str(tmp_path / 'pictres' / 'train'))
    with pytest.raises(InputError, match='no image file matches'):
        open_source(str(tmp_path / '*.png'))


def test_a_folder_without_images_says_what_it_has(tmp_path):
    (tmp_path / 'film.mp4').write_bytes(b'')
    with pytest.raises(InputError, match='no image file in .*found 1 .mp4'):
        open_source(str(tmp_path))
    with pytest.raises(InputError, match='cannot read .mp4 files'):
        open_source(str(tmp_path / 'film.mp4'))


@pytest.mark.parametrize('path', ['gs://b/train.parquet', 'gs://b/*.parquet', 's3://b/folder'])
def test_a_bucket_has_to_be_mounted(path):
    with pytest.raises(InputError, match=f'^{re.escape(path)} is a URL.*mount the bucket'):
        open_source(path)
