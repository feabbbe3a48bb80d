"""An autoencoder of one step, and the images it was trained on."""

import importlib

import numpy as np
import pytest

from mim_jax import train

RECORDS, BROKEN = 11, 4
KEPT = [i for i in range(RECORDS) if i != BROKEN]


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A file of images with labels, one of which cannot be read."""
    path = tmp_path_factory.mktemp('images') / 'images.npz'
    pixels = np.random.default_rng(0).random((RECORDS, 4, 4, 1), np.float32)
    pixels[BROKEN] = np.nan
    np.savez(path, images=pixels, labels=np.arange(RECORDS) % 3)
    return path


@pytest.fixture(scope='session')
def run(tmp_path_factory, images):
    """The workdir of a run with codes."""
    return trained('vq', images, tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='session')
def latent_run(tmp_path_factory, images):
    """The workdir of a run with latents."""
    return trained('kl', images, tmp_path_factory.mktemp('latent_run'))


def trained(name, images, workdir):
    """The workdir, after one step of a config."""
    config = importlib.import_module(f'configs.{name}').get_config('tiny')
    for part in (config.encoder, config.decoder):
        part.widths = (8,)
    config.data.update(path=str(images), batch_size=4, image_size=(4, 4), canvas=(4, 4), dtype='float32')
    config.update(total_steps=1, eval_every=0, tensorboard=False, evals_often=(), evals_last=())
    config.mesh.data = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_ENABLE_COMPILATION_CACHE', '0')
        assert train.run(config, workdir, 'train', {'data.path': 'command line'}) == 0
    return workdir


def raw(pixels):
    """A batch as the pipeline delivers it, of images f32[n, 4, 4, 1]."""
    return dict(image=np.asarray(pixels), size=np.full((len(pixels), 2), 4, np.int32))
