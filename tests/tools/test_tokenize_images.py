import importlib

import numpy as np
import pytest

from mim_jax import inputs
from mim_jax.augment import latents as normalised
from mim_jax.autoencoder import Autoencoder, Codes
from mim_jax.data import LatentReader, TokenReader, open_source
from mim_jax.data.tokens import load
from mim_jax.errors import InputError
from mim_jax.tools import tokenize
from tests import codecs

images, run, latent_run = codecs.images, codecs.run, codecs.latent_run


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


@pytest.mark.parametrize('flips', [False, True])
def test_stored_latents_decode_as_those_of_the_same_images(latent_run, images, tmp_path, flips):
    (told,) = tokenize.images(str(images), tmp_path / 'latents', str(latent_run), flips=flips).values()
    source, codec = open_source(str(tmp_path / 'latents'), media='latents'), Autoencoder(latent_run)
    pixels = np.load(images)['images'][codecs.KEPT]
    views = [pixels, pixels[:, :, ::-1]][: 1 + flips]
    online = np.stack([codec.encode(codecs.raw(view)) for view in views], 1).reshape(-1, 2, 2, 4)
    stored = np.stack([load(source[i].data) for i in range(len(source))])
    np.testing.assert_array_equal(stored, online.astype(np.float16))
    assert [source[i].label for i in range(len(source))] == [i % 3 for i in codecs.KEPT for _ in views]

    found, exact = told['tokens'], stored.astype(np.float64).reshape(-1, 4)
    assert told['media'] == 'latents' and found.keys() == {'shape', 'mean', 'std', 'autoencoder'}
    np.testing.assert_allclose(found['mean'], exact.mean(0))
    np.testing.assert_allclose(found['std'], exact.std(0))

    settled = LatentReader.settle({}, lambda *_: source)
    reader = LatentReader(canvas=settled['canvas'], channels=settled['channels'])
    rows = dict(image=np.zeros((1, 2, 2, 4), np.float32))
    assert reader.arrange(source) is source and reader(source[0].data, None, rows) == ()
    mean, std = settled['mean'], settled['std']
    x = normalised(None, rows, mean=mean, std=std)['image']
    np.testing.assert_allclose(x[0], (stored[0] - np.array(mean)) / np.array(std), rtol=1e-4, atol=1e-4)
    drawn = Autoencoder(found['autoencoder']).decode(
        np.asarray(x) * np.array(std, np.float32) + np.array(mean, np.float32)
    )
    assert np.abs(drawn.astype(int) - codec.decode(online[:1])).max() <= 1  # float16, and rounding to 8 bits


def test_moments_are_those_of_training_and_a_channel_that_is_the_same_everywhere_is_left_as_it_is(
    latent_run, images, tmp_path
):
    train, val = tokenize.images(str(images), tmp_path / 'latents', str(latent_run), holdout=0.3).values()
    source = open_source(str(tmp_path / 'latents' / 'train'), media='latents')
    stored = np.stack([load(source[i].data) for i in range(len(source))]).astype(np.float64)
    assert val['tokens'] == train['tokens']
    np.testing.assert_allclose(train['tokens']['std'], stored.std((0, 1, 2)))
    made = Codes.__new__(Codes)
    made.codes = np.stack([np.full((5, 1, 2, 2), 3.0), np.arange(20.0).reshape(5, 1, 2, 2)], -1).astype(np.float16)
    assert made.moments() == dict(mean=[3.0, 9.5], std=[1.0, pytest.approx(np.arange(20).std())])
    made.codes[0] = np.inf
    with pytest.raises(InputError, match='latents that are not finite as float16'):
        made.moments()


def test_codes_are_no_latents_and_latents_no_codes(run, latent_run, images, tmp_path):
    for made, is_of, other in ((run, 'tokens', 'latents'), (latent_run, 'latents', 'tokens')):
        tokenize.images(str(images), tmp_path / is_of, str(made))
        with pytest.raises(
            InputError, match=f'holds packed {is_of}, but the config is one of {other}; python -m mim_jax'
        ):
            open_source(str(tmp_path / is_of), media=other)


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


def test_rows_of_codes_are_decoded_by_the_run_of_the_index(run, images, tmp_path):
    tokenize.images(str(images), tmp_path / 'codes', str(run))
    config = importlib.import_module('configs.maskgit').get_config('tiny')
    config.data.path = str(tmp_path / 'codes')
    inputs.settle(config, tmp_path)
    data, ids = inputs.Data(config, tmp_path, None).labelled, np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(data.decode(ids), Autoencoder(run).decode(ids.reshape(2, 2, 2)))
