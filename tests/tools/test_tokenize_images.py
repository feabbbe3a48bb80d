import numpy as np
import pytest

from mim_jax.autoencoder import Autoencoder
from mim_jax.data import TokenReader, open_source
from mim_jax.data.tokens import load
from mim_jax.tools import tokenize
from tests import codecs

images, run = codecs.images, codecs.run


@pytest.mark.parametrize('flips', [False, True])
def test_stored_codes_are_those_of_the_same_images(run, images, tmp_path, flips):
    argv = [str(images), str(tmp_path / 'codes'), f'--run={run}', '--workers=1'] + ['--flips'] * flips
    assert tokenize.main(argv) == 0
    source, codec = open_source(str(tmp_path / 'codes'), media='tokens'), Autoencoder(run)
    pixels = np.load(images)['images'][codecs.KEPT]
    views = [pixels, pixels[:, :, ::-1]][: 1 + flips]
    online = np.stack([codec.encode(codecs.raw(view)) for view in views], 1)
    records = [source[i] for i in range(len(source))]
    stored = np.stack([load(record.data) for record in records])
    np.testing.assert_array_equal(stored, online.reshape(-1, 2, 2))
    assert [record.label for record in records] == [i % 3 for i in codecs.KEPT for _ in views]
    assert len({record.name for record in records}) == len(records) and source.num_classes == 3


def test_the_index_says_what_is_needed_to_read_and_to_draw_them(run, images, tmp_path):
    told = tokenize.images(str(images), tmp_path / 'codes', str(run), flips=True, holdout=0.3)
    assert [folder.rpartition('/')[2] for folder in told] == ['train', 'val']
    train, val = told.values()
    assert len(train['skipped']) + len(val['skipped']) == 1
    assert train['count'] // 2 + val['count'] == len(codecs.KEPT)  # mirror images are for training
    assert train['tokens'] == dict(shape=[2, 2], vocab=128, autoencoder=str(run))
    source = open_source(str(tmp_path / 'codes' / 'train'), media='tokens')
    reader = TokenReader(**TokenReader.settle({}, lambda *_: source))
    rows = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in reader.row.items()}
    reader(source[0].data, None, rows)
    drawn = Autoencoder(train['tokens']['autoencoder']).decode(rows['ids'].reshape(1, *reader.shape))
    assert drawn.shape == (1, 4, 4, 1) and drawn.dtype == np.uint8


@pytest.mark.parametrize(
    'argv, message',
    [
        (['--run=/nowhere'], '/nowhere has no config.json that can be read'),
        (['--flips'], '--flips is for images'),
    ],
)
def test_what_is_wrong_is_one_sentence(images, tmp_path, capsys, argv, message):
    assert tokenize.main([str(images), str(tmp_path / 'codes'), *argv]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'codes').exists()


def test_images_that_cannot_be_read_at_all_are_one_sentence(run, tmp_path, capsys):
    np.savez(tmp_path / 'broken.npz', images=np.full((3, 4, 4, 1), np.nan, np.float32))
    assert tokenize.main([str(tmp_path / 'broken.npz'), str(tmp_path / 'codes'), f'--run={run}']) == 2
    assert 'no readable record' in capsys.readouterr().err
