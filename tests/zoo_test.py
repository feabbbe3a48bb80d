"""Every shipped config: builds small, takes two finite steps with one compilation, and leaves no parameter without gradient."""

import importlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests import checks


@pytest.fixture(scope='module', params=checks.CONFIGS)
def method(request):
    config = checks.tiny(request.param)
    return request.param, config, *checks.parts(config)


def test_two_steps_compile_once_and_are_finite(method):
    _, config, _, state, train = method
    after = checks.two_steps(state, train, config)
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), state.params, after.params)
    assert all(jax.tree.leaves(moved))


def test_every_parameter_gets_gradient(method):
    _, config, objective, state, _ = method
    batch, gated = checks.view(config), config.get('condition')  # gates of 0 let nothing through at first
    params = checks.any_params(objective, batch) if gated else state.params
    checks.every_parameter_learns(objective, params, batch)


def test_the_docstring_cites_its_paper(method):
    assert re.search(r'arXiv \d{4}\.\d{5}', importlib.import_module(f'configs.{method[0]}').__doc__)


@pytest.mark.parametrize('variant', ['tiny', 's', 'b', 'l', 'h', 'vit_l16', 'vit_b32'])
def test_variants_of_mae_build(variant):
    config = importlib.import_module('configs.mae').get_config(variant)
    assert checks.build.objective(config).encoder.shape[0] >= 192


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
