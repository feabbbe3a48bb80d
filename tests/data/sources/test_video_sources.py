"""Each kind of source of videos, and what is said where a source holds something else."""

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mim_jax.data import find_splits, open_source, open_splits
from mim_jax.data.sources import find_media
from mim_jax.data.sources.base import Video
from mim_jax.data.sources.builtin import DIGIT, MOTIONS, SIDE
from mim_jax.errors import InputError
from tests.data.sources.test_sources import records
from tests.data.sources.test_sources import write as write_png
from tests.data.videos import write


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    return write(tmp_path_factory.mktemp('film') / 'film.mp4', 12, size=(16, 16))


@pytest.fixture
def folder(tmp_path, film):
    """`folder(NAME, ...)`: copies of the film under these names."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(film, tmp_path / name)
        return tmp_path

    return make


def opened(path, labels='auto', **options):
    return open_source(str(path), labels, media='video', **options)


def told(source):
    return [(record.name, record.label) for record in records(source)]


# folders and lists


def test_a_flat_folder_is_not_read(folder):
    root = folder('b.mp4', 'a.MKV', '.hidden.mp4', 'notes.md', 'cover.jpg')
    source = opened(root)
    assert told(source) == [('a.MKV', -1), ('b.mp4', -1)] and source.num_classes == 0
    assert source[1].data == Video(str(root / 'b.mp4'), 0.0, None)
    assert told(pickle.loads(pickle.dumps(source))) == told(source)
    (root / 'b.mp4').unlink()
    assert source[1].data.file.endswith('b.mp4')


def test_a_folder_per_class(folder):
    root = folder('run/1.mp4', 'jump/2.webm', 'jump/deep/3.avi')
    source = opened(root)
    assert source.class_names == ['jump', 'run']
    assert told(source) == [('jump/2.webm', 0), ('jump/deep/3.avi', 0), ('run/1.mp4', 1)]
    assert told(opened(root / '**' / '*.avi')) == [(str(root / 'jump/deep/3.avi'), -1)]


def test_train_and_validation_folders(folder):
    root = folder('train/a/1.mp4', 'train/b/2.mp4', 'val/b/3.mp4')
    train, validation = open_splits(str(root), media='video')
    assert told(train) == [('a/1.mp4', 0), ('b/2.mp4', 1)] and told(validation) == [('b/3.mp4', 1)]


def test_a_list_with_everything(folder):
    root = folder('x/1.mp4', 'x/my film.mp4')
    (root / 'list.csv').write_text(
        'file,label,label_name,split,start,end\n'
        'x/1.mp4,0,jump,train,,\n'
        'x/1.mp4,2,run,train,0.1,0.3\n'
        '"x/my film.mp4",1,sit,test,0.2,\n'
        'x/1.mp4,2,run,test,,0.25\n'
    )
    assert find_splits(str(root / 'list.csv')) == (f'{root}/list.csv:train', f'{root}/list.csv:test')
    train, test = open_splits(str(root / 'list.csv'), media='video')
    assert told(train) == [('x/1.mp4', 0), ('x/1.mp4@0.1-0.3', 2)]
    assert told(test) == [('x/my film.mp4@0.2-', 1), ('x/1.mp4@0-0.25', 2)]
    assert [test.name(i) for i in range(2)] == ['x/my film.mp4@0.2-', 'x/1.mp4@0-0.25']
    assert train.class_names == test.class_names == ['jump', 'sit', 'run'] and train.num_classes == 3
    assert train[1].data == Video(str(root / 'x/1.mp4'), 0.1, 0.3)
    assert told(pickle.loads(pickle.dumps(test))) == told(test)
    assert len(opened(root / 'list.csv')) == 4
    assert opened(root / 'list.csv', 'label_name').class_names == ['jump', 'run', 'sit']
    assert [label for _, label in told(opened(root / 'list.csv', 'none'))] == [-1] * 4


def test_a_list_without_labels(folder):
    root = folder('1.mp4', '2.mp4')
    (root / 'spans.csv').write_text('path,start,end\n1.mp4,0.1,0.2\n2.mp4,0,0.3\n')
    assert told(opened(root / 'spans.csv')) == [('1.mp4@0.1-0.2', -1), ('2.mp4@0-0.3', -1)]
    (root / 'part.csv').write_text('video,label\n1.mp4,5\n2.mp4,\n')
    assert told(opened(root / 'part.csv')) == [('1.mp4', 5), ('2.mp4', -1)]
    (root / 'bare.csv').write_text('1.mp4\n2.mp4\n')
    assert told(opened(root / 'bare.csv')) == [('1.mp4', -1), ('2.mp4', -1)]
    (root / 'one_column.csv').write_text('file\n1.mp4\n')
    assert told(opened(root / 'one_column.csv')) == [('1.mp4', -1)]


def test_a_text_list(folder):
    root = folder('1.mp4', 'my film.mkv')
    (root / 'list.txt').write_text('# comment\n1.mp4 jump\nmy film.mkv\n1.mp4 run\n')
    assert told(opened(root / 'list.txt')) == [('1.mp4', 0), ('my film.mkv', -1), ('1.mp4', 1)]


def test_what_is_wrong_in_a_list(folder):
    root = folder('1.mp4')
    for text, labels, why in (
        ('file,label,start\n1.mp4,0,soon\n', 'auto', "start 'soon', end '': they have to be seconds"),
        ('file,label,start,end\n1.mp4,0,3,2\n', 'auto', "start '3', end '2': the end has to be after the start"),
        ('file,label,start\n1.mp4,0,-1\n', 'auto', 'after the start'),
        ('file,label,start,end\n1.mp4,0,nan,nan\n', 'auto', 'after the start'),
        ('file,label\n1.mp4,0\n', 'kind', 'no such column, only file, label'),
        ('file,label\n', 'auto', 'lists no file'),
        ('file,label\n1.png,0\n', 'auto', 'lists image files, as 1.png, but the config is one of videos'),
    ):
        (root / 'list.csv').write_text(text)
        with pytest.raises(InputError, match=why):
            opened(root / 'list.csv', labels)
    (root / 'list.csv').write_text('file,label,split\n1.mp4,0,train\n')
    with pytest.raises(InputError, match="lists no file of split 'val'"):
        opened(f'{root}/list.csv:val')
    assert find_splits(str(root / 'list.csv'))[1] == ''


# tables and arrays


def table(path, film, name='video', kind='Video', features=True, **columns):
    values = [dict(bytes=film.read_bytes(), path=f'{k}.mp4') for k in range(3)]
    made = pa.table({name: values, **columns})
    if features:
        about = {'info': {'features': {name: {'_type': kind}, 'label': {'_type': 'ClassLabel', 'names': ['x', 'y']}}}}
        made = made.replace_schema_metadata({'huggingface': json.dumps(about)})
    pq.write_table(made, path)
    return path


@pytest.mark.parametrize('name, features', [('video', False), ('film', True), ('bytes', True)])
def test_parquet(tmp_path, film, name, features):
    path = table(
        tmp_path / 'v.parquet', film, name, features=features, label=[0, 1, None], split=['train'] * 2 + ['test']
    )
    train, test = open_splits(str(path), media='video')
    assert told(train) == [('v.parquet:0', 0), ('v.parquet:1', 1)] and told(test) == [('v.parquet:2', -1)]
    assert train[1].data == film.read_bytes()
    assert find_media(str(path)) == ('image' if not features and name == 'bytes' else 'video')


def test_parquet_with_paths_only(tmp_path, film):
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    video = pa.array([dict(bytes=None, path='one.mp4'), dict(bytes=None, path=None)], kind)
    pq.write_table(pa.table(dict(video=video)), tmp_path / 'p.parquet')
    source = opened(tmp_path / 'p.parquet')
    assert source[0].data == Video(str(tmp_path / 'one.mp4')) and source[1].data == b''


def test_parquet_of_images_and_videos(tmp_path, film):
    path = table(tmp_path / 'v.parquet', film, image=[dict(bytes=b'picture')] * 3)
    assert opened(path)[0].data == film.read_bytes() and open_source(str(path))[0].data == b'picture'


def test_parquet_of_the_other_medium(tmp_path, film):
    videos, images = (
        table(tmp_path / f'{kind}.parquet', film, name, kind) for name, kind in (('video', 'Video'), ('data', 'Image'))
    )
    with pytest.raises(InputError, match=r'no column of encoded images among video \(video\)'):
        open_source(str(videos))
    with pytest.raises(InputError, match=r'no column of encoded videos among data \(image\)'):
        opened(images)


def test_arrays(tmp_path):
    videos = np.arange(3 * 4 * 5 * 6 * 3, dtype=np.uint8).reshape(3, 4, 5, 6, 3)
    for name, shape in (('videos', videos.shape), ('clips', (3, 4, 5, 18)), ('strange', videos.shape)):
        np.savez(tmp_path / 'v.npz', **{name: videos.reshape(shape)}, label=[2, 0, 1])
        source = opened(tmp_path / 'v.npz')
        assert [record.label for record in records(source)] == [2, 0, 1]
        np.testing.assert_array_equal(source[1].data, videos.reshape(shape)[1])
        assert len(pickle.dumps(source)) < 300
    np.save(tmp_path / 'v.npy', videos)
    np.testing.assert_array_equal(opened(tmp_path / 'v.npy')[2].data, videos[2])
    np.savez(tmp_path / 'flat.npz', video=videos[0, 0])
    with pytest.raises(InputError, match=r'videos are \[5, 6, 3\]; they have to be \[N, T, H, W\]'):
        opened(tmp_path / 'flat.npz')


def test_saved_hugging_face_dataset(tmp_path, film):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(video=datasets.Value('string'), label=datasets.ClassLabel(names=['x', 'y']))
    made = datasets.Dataset.from_dict(dict(video=[str(film)] * 3, label=[1, 0, 1]), features)
    made.cast_column('video', datasets.Video(decode=False)).save_to_disk(tmp_path / 'saved')
    source = opened(tmp_path / 'saved')
    assert [record.label for record in records(source)] == [1, 0, 1] and source.class_names == ['x', 'y']
    assert source[0].data in (film.read_bytes(), Video(str(film)))
    assert find_media(str(tmp_path / 'saved')) == 'video'
    with pytest.raises(InputError, match=r'no image among its features video \(Video\)'):
        open_source(str(tmp_path / 'saved'))


# the wrong medium


def test_a_folder_of_the_other_medium_says_what_it_has(folder):
    root = folder('films/1.mp4', 'films/2.mp4')
    write_png(root / 'pictures' / '1.png')
    with pytest.raises(InputError, match='no video file in .*pictures: looked for .mp4.*, found 1 .png'):
        opened(root / 'pictures')
    with pytest.raises(InputError, match='no image file in .*films.*found 2 .mp4'):
        open_source(str(root / 'films'))
    with pytest.raises(InputError, match='no video file matches .*found 1 .png'):
        opened(root / 'pictures' / '*')
    (root / 'list.txt').write_text('films/1.mp4\n')
    with pytest.raises(InputError, match='lists video files, as films/1.mp4, but the config is one of images'):
        open_source(str(root / 'list.txt'))


def test_builtins_of_the_other_medium():
    with pytest.raises(InputError, match='builtin:digits holds images, but the config is one of videos'):
        opened('builtin:digits')
    with pytest.raises(InputError, match='builtin:moving_digits holds videos, but the config is one of images'):
        open_source('builtin:moving_digits')
    with pytest.raises(InputError, match='only images are read from TensorFlow Datasets'):
        opened('tfds:ucf101')


def test_the_medium_is_found_out(folder):
    root = folder('1.mp4', '2.mp4')
    assert find_media(str(root)) == find_media(str(root / '*')) == find_media('builtin:moving_digits') == 'video'
    write_png(root / 'cover.png')
    assert find_media(str(root)) == 'video'
    for k in range(3):
        write_png(root / f'{k}.png')
    assert find_media(str(root)) == find_media('builtin:digits') == 'image'
    for name, shape, media in (
        ('videos', (2, 4, 8, 8), 'video'),
        ('images', (2, 8, 8, 3), 'image'),
        ('x', (2, 4, 8, 8, 3), 'video'),
    ):
        np.savez(root / 'a.npz', **{name: np.zeros(shape, np.uint8)})
        assert find_media(str(root / 'a.npz')) == media
    for text, media in (('1.mp4 0\n', 'video'), ('cover.png 0\n', 'image')):
        (root / 'list.txt').write_text(text)
        assert find_media(str(root / 'list.txt')) == media
    with pytest.raises(InputError, match='does not exist'):
        find_media(str(root / 'nothing'))


# moving digits


def test_moving_digits_are_the_same_each_time_and_their_splits_apart():
    train, test = open_splits('builtin:moving_digits', media='video')
    assert (len(train), len(test), train.num_classes) == (1438 * 4, 359 * 4, 40)
    assert train.class_names[:5] == ['0 resting', '0 horizontal', '0 vertical', '0 diagonal', '1 resting']
    for index in (0, 9, 4321):
        a, b = train[index], pickle.loads(pickle.dumps(train))[index]
        assert a.name == b.name == train.name(index) and a.label == b.label
        np.testing.assert_array_equal(a.data, b.data)
        assert a.data.shape == (20, 64, 64) and a.data.dtype == np.uint8
    assert not {train.name(i) for i in range(len(train))} & {test.name(i) for i in range(len(test))}
    assert opened('builtin:moving_digits', 'none').num_classes == 0


def test_moving_digits_move_as_their_label_says_and_stay_inside():
    source, digits = opened('builtin:moving_digits'), open_source('builtin:digits')
    bounced = set()
    for index in range(200):
        film, label = source[index].data, source[index].label
        digit, motion = divmod(label, len(MOTIONS))
        assert digits[index // 4].label == digit and f'{MOTIONS[motion]}' in source.name(index)
        image = digits[index // 4].data.repeat(3, 0).repeat(3, 1)
        way = np.array([_corner(frame, image) for frame in film])
        assert (way >= 0).all() and (way <= SIDE - DIGIT).all()
        moved = (np.abs(np.diff(way, axis=0)).sum(0) > 0).tolist()
        assert moved == [motion in (2, 3), motion in (1, 3)]
        turns = np.diff(np.sign(np.diff(way, axis=0)), axis=0)
        bounced |= {axis for axis in (0, 1) if (np.abs(turns[:, axis]) == 2).any()}
    assert bounced == {0, 1}


def _corner(frame, image):
    """(top, left) at which a frame shows the image, and nothing else."""
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    top, left = np.flatnonzero(frame.any(1))[0] - rows[0], np.flatnonzero(frame.any(0))[0] - columns[0]
    np.testing.assert_array_equal(frame[top : top + DIGIT, left : left + DIGIT], image)
    assert frame.sum(dtype=int) == image.sum(dtype=int)
    return top, left
