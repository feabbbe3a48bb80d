import json

import numpy as np
import pytest

from mim_jax.autoencoder import Autoencoder
from mim_jax.errors import InputError
from tests import codecs, runs

images, run = codecs.images, codecs.run


@pytest.fixture(scope='module')
def codec(run):
    return Autoencoder(run)


def test_images_become_codes_and_codes_images(codec, images):
    pixels = np.load(images)['images'][codecs.KEPT]
    ids = codec.encode(codecs.raw(pixels))
    drawn = codec.decode(ids)
    assert codec.shape == (2, 2) and codec.vocab == 128 and codec.reader.media == 'image'
    assert ids.shape == (len(pixels), 2, 2) and ids.dtype == np.int32 and 0 <= ids.min() and ids.max() < 128
    assert drawn.shape == pixels.shape and drawn.dtype == np.uint8


def test_a_mirrored_image_has_the_codes_of_its_mirror_image(codec, images):
    pixels = np.load(images)['images'][codecs.KEPT]
    mirrored = codec.encode(codecs.raw(pixels), flip=True)
    np.testing.assert_array_equal(mirrored, codec.encode(codecs.raw(pixels[:, :, ::-1])))


def test_the_run_logged_what_an_autoencoder_is_judged_by(run):
    last = runs.lines(run / 'metrics.jsonl')[-1]
    assert {'train/psnr', 'train/codes', 'baseline/mean_predictor_loss', 'features/std'} <= last.keys()
    assert not {'train/baseline', 'train/finite', 'train/examples'} & last.keys()


@pytest.mark.parametrize('text, message', [(None, 'has no config.json'), ('{', 'has no config.json')])
def test_a_folder_that_is_no_run_is_refused(tmp_path, text, message):
    if text:
        (tmp_path / 'config.json').write_text(text)
    with pytest.raises(InputError, match=message):
        Autoencoder(tmp_path)


def test_a_run_of_another_objective_is_refused(run, tmp_path):
    config = json.loads((run / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(config | dict(objective=dict(name='MaskedPrediction'))))
    with pytest.raises(InputError, match='is a run of the objective MaskedPrediction'):
        Autoencoder(tmp_path)


def test_a_run_without_checkpoint_is_refused(run, tmp_path):
    (tmp_path / 'config.json').write_text((run / 'config.json').read_text())
    with pytest.raises(InputError, match='has no checkpoints'):
        Autoencoder(tmp_path)
