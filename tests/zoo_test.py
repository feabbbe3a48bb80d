"""Every shipped config: builds small, takes two finite steps with one compilation, and leaves no parameter without gradient."""

import importlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import compile, train
from tests import checks


@pytest.fixture(scope='module', params=checks.CONFIGS)
def method(request):
    config = checks.tiny(request.param)
    return request.param, config, *checks.parts(config)


def test_two_steps_compile_once_and_are_finite(method):
    _, config, objective, state, train = method
    if config.get('condition'):  # gates and last layers of 0 let nothing through at first
        state = state.replace(params=checks.any_params(objective, checks.view(config)))
    after = checks.two_steps(state, train, config)
    moved = jax.tree.map(lambda a, b: np.any(a != b), *jax.device_get((state.params, after.params)))
    assert all(jax.tree.leaves(moved))


def test_every_parameter_gets_gradient(method):
    _, config, objective, state, _ = method
    batch = checks.view(config)
    params = checks.any_params(objective, batch) if config.get('condition') else state.params
    checks.every_parameter_learns(objective, params, batch)


def test_the_docstring_cites_its_paper(method):
    assert re.search(r'arXiv \d{4}\.\d{5}', importlib.import_module(f'configs.{method[0]}').__doc__)


@pytest.mark.parametrize('variant', ['tiny', 's', 'b', 'l', 'h', 'vit_l16', 'vit_b32'])
def test_variants_of_mae_build(variant):
    config = importlib.import_module('configs.mae').get_config(variant)
    assert checks.build.objective(config).encoder.shape[0] >= 192


@pytest.mark.parametrize('variant', ['cifar10_latents', 's2', 'b2', 'l2', 'xl2'])
@pytest.mark.parametrize('name', ['dit', 'umd', 'maskdit', 'microdit'])
def test_variants_of_latents_build(name, variant):
    config = importlib.import_module(f'configs.{name}').get_config(variant)
    config.data.batch_size = 4
    objective, augment, spec = checks.build.objective(config), checks.build.augment(config), compile.batch_spec(config)
    state = jax.eval_shape(train.initial(config, objective, augment), spec)
    first, name = (objective.mixer, 'mixer') if objective.mixer else (objective.encoder, 'encoder')
    assert state.params[name]['embed']['kernel'].shape == (4 * config.tokenizer.patch[0] ** 2, first.shape[0])


@pytest.mark.parametrize(('variant', 'shape'), [
    ('tiny', (4, 4, 4)), ('cifar10', (8, 8, 4)), ('s', (32, 32, 4)), ('b', (32, 32, 4)), ('kl16', (16, 16, 16)),
])  # fmt: skip
def test_variants_of_kl_build(variant, shape):
    config = importlib.import_module('configs.kl').get_config(variant)
    objective, augment, spec = (
        checks.build.objective(config),
        checks.build.augment(config),
        compile.batch_spec(config, 2),
    )
    state = jax.eval_shape(train.initial(config, objective, augment), spec)
    image = dict(image=jnp.zeros((1, *config.data.image_size, config.data.channels)))
    codes = jax.eval_shape(lambda p, x: objective.apply({'params': p}, x, method='codes'), state.params, image)
    assert codes.shape == (1, *shape)


class Idle(nn.Module):
    """A predictor with a parameter that does nothing."""

    inner: nn.Module

    @nn.compact
    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs) + 0 * self.param('idle', nn.initializers.ones, ())


def test_a_planted_dead_parameter_is_found():
    config = checks.tiny('quickstart')
    objective, batch = checks.build.objective(config), checks.view(config)
    broken = objective.clone(predictor={k: Idle(v) for k, v in objective.predictor.items()})
    with pytest.raises(AssertionError, match='no gradient reaches predictor_pixels/idle'):
        checks.every_parameter_learns(broken, checks.any_params(broken, batch), batch)


def test_a_planted_second_compilation_is_found():
    config = checks.tiny('quickstart')
    _, state, train = checks.parts(config)

    def drifts(state, *args):  # the step count comes out as a float: the next call has other types
        state, metrics = train(state, *args)
        return state.replace(step=state.step.astype(jnp.float32)), metrics

    with pytest.raises(AssertionError, match='compiled 2 times'):
        checks.two_steps(state, drifts, config)
