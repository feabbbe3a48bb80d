"""From a config to its parts, and what is said where it is wrong."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mim_jax import build, sharding, train
from mim_jax.errors import InputError
from mim_jax.losses import mse
from mim_jax.models import ViT
from tests import checks


def config(**changes):
    found = importlib.import_module('configs.quickstart').get_config()
    with found.unlocked():
        found.update_from_flattened_dict(changes)
    return found


def test_a_function_is_bound_and_a_class_is_made():
    bound = build.part('losses', ConfigDict(dict(name='mse')))
    assert bound.func is mse and bound(jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3)), jnp.ones((1, 2))) == 1
    assert build.part('models', dict(name='ViT', size='s', depth=3), dtype='bfloat16') == ViT(
        size='s', depth=3, dtype='bfloat16'
    )
    assert build.part('optim', dict(name='schedule', lr=1.0), bind=False, batch_size=512, total_steps=10)(0) == 2


def test_the_objective_has_the_terms_of_the_config():
    objective = build.objective(config())
    assert objective.encoder.shape == (96, 4, 4)
    assert objective.terms.keys() == objective.predictor.keys() == {'pixels'}
    assert objective.terms['pixels'].on == 'hidden' and objective.terms['pixels'].weight == 1.0


@pytest.mark.parametrize(
    ('spec', 'says'),
    [
        (dict(name='rondom'), "mim_jax.masks has no 'rondom'. Did you mean 'random'?"),
        (dict(name='xyz'), "mim_jax.masks has no 'xyz'. There are: "),
        (dict(name='random', ratoi=0.5), "config.mask.ratoi: random takes no such option. Did you mean 'ratio'?"),
        (dict(ratio=0.5), 'config.mask has no name: it needs name=..., one of what mim_jax.masks exports'),
    ],
)
def test_a_part_that_does_not_exist(spec, says):
    with pytest.raises(InputError) as error:
        build.part('masks', spec, where='mask')
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    ('key', 'value', 'says'),
    [
        ('total_steps', -5, 'config.total_steps=-5: it has to be at least 1'),
        ('log_every', 0, 'config.log_every=0: it has to be at least 1'),
        ('data.batch_size', 0, 'config.data.batch_size=0: it has to be at least 1'),
        ('ema', 1.5, 'config.ema=1.5: it has to be between 0 and 1'),
        (
            'end_ema',
            1.0,
            'config.end_ema=1.0, but config.ema=0 keeps no average: set config.ema too, or config.end_ema=0',
        ),
        ('schedule.lr', -1.0, 'config.schedule.lr=-1.0: it has to be at least 0'),
        ('schedule.lr', float('nan'), 'config.schedule.lr=nan: it has to be at least 0'),
        (
            'data.image_size',
            (8,),
            'config.data.image_size=(8,): it has to be height and width in pixels, as "(224, 224)"',
        ),
        ('data.std', (0.0,), 'config.data.std=(0.0,): every number has to be above 0'),
        ('dtype', 'float31', 'config.dtype=float31: it has to be one of float32, bfloat16, float16'),
        ('data.dtype', 'int8', 'config.data.dtype=int8: it has to be one of uint8, uint16, float32'),
    ],
)
def test_a_value_out_of_range(key, value, says):
    build.check(config())
    with pytest.raises(InputError) as error:
        build.check(config(**{key: value}))
    assert str(error.value) == says


def test_the_average_grows_slower_where_it_has_an_end():
    there, growing = config(ema=0.9), config(ema=0.9, end_ema=1.0)
    there.total_steps = growing.total_steps = 100
    np.testing.assert_allclose([build.ema(there)(step) for step in (0, 50, 100)], 0.9, rtol=1e-6)
    np.testing.assert_allclose([build.ema(growing)(step) for step in (0, 50, 100)], [0.9, 0.95, 1.0], rtol=1e-6)


@pytest.mark.parametrize('name', ['mar', 'maskgit'])
def test_a_mask_that_asks_for_groups_is_refused_where_none_can_answer(name):
    asks = checks.tiny(name)
    asks.mask = dict(name='multiblock')
    with pytest.raises(InputError, match='asks for groups of tokens one by one.*only MaskedPrediction'):
        train.parts(asks, sharding.make_mesh(1))


def test_no_terms():
    bare = config()
    bare.terms = ConfigDict()
    with pytest.raises(InputError, match='config.terms is empty'):
        build.objective(bare)
