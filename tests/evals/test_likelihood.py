"""The numbers of the evaluator against those of the objective, and each unit against another."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.evals import likelihood, pseudo_likelihood
from mim_jax.masks import absorbing
from mim_jax.objectives import Sequence
from mim_jax.tokenizers import ids
from tests.evals.tokens import Texts, model


@pytest.fixture(scope='module')
def diffusion():
    return model()


def test_more_draws_come_to_the_mean_of_all(diffusion):
    objective, params, data = diffusion
    few, many = (likelihood(objective, data, draws=draws, batch_size=4)(params) for draws in (16, 512))
    assert abs(few['eval/nelbo_nats'] - many['eval/nelbo_nats']) < 4 * few['eval/nelbo_nats_error']
    ratio = few['eval/nelbo_nats_error'] / many['eval/nelbo_nats_error']
    assert 4 < ratio < 8  # sqrt(32) = 5.7


class Steep:
    """An objective whose estimate is the level times the number of tokens, so that all its error is that of the levels."""

    exact = knows_level = False
    tokenizer = staticmethod(ids)

    def apply(self, params, batch, key, mask, method):
        tokens = batch['valid'] * jnp.float32(Texts.LENGTH)
        return mask.level * tokens, tokens


@pytest.mark.parametrize('size', [4, 32], ids=['batches, the last one short', 'one short batch'])
def test_the_error_is_what_seeds_differ_by_or_more(size):
    found = [
        likelihood(Steep(), Texts(), draws=4, batch_size=size, mask=dict(by='time'), seed=seed)({})
        for seed in range(30)
    ]
    values, errors = (np.array([each[f'eval/nelbo_nats{name}'] for each in found]) for name in ('', '_error'))
    assert values.mean() == pytest.approx(0.5, abs=4 * values.std() / len(values) ** 0.5)
    assert errors.mean() == pytest.approx((1 / 12 / 40) ** 0.5, rel=0.2)  # of 40 independent levels
    assert 0.2 * errors.mean() < values.std(ddof=1) < errors.mean()


def test_units(diffusion):
    objective, params, data = diffusion
    found = likelihood(objective, data, draws=4)(params)
    assert found['eval/bits_per_token'] == pytest.approx(found['eval/nelbo_nats'] / math.log(2))
    assert found['eval/perplexity'] == pytest.approx(math.exp(found['eval/nelbo_nats']))
    assert found['eval/bits_per_byte'] == pytest.approx(found['eval/bits_per_token'] / 2)  # two bytes a token


def test_rows_that_fill_up_a_batch_and_padding_do_not_count(diffusion):
    objective, params, data = diffusion
    one, all_ = (likelihood(objective, data, draws=64, batch_size=size)(params) for size in (3, 10))
    assert abs(one['eval/nelbo_nats'] - all_['eval/nelbo_nats']) < 5 * one['eval/nelbo_nats_error']


def test_the_exact_value_has_no_error_and_is_that_of_each_token():
    objective, params, data = model(Sequence)
    found = likelihood(objective, data)(params)
    assert 'eval/nelbo_nats_error' not in found
    batch = {name: jnp.asarray(x) for name, x in next(iter(data.val(10))).items()}
    nats, tokens = objective.apply({'params': params}, batch, jax.random.key(0), method='nats')
    assert found['eval/nelbo_nats'] == pytest.approx(float(nats.sum() / tokens.sum()), rel=1e-6)


def test_pseudo_likelihood_hides_one_token_at_a_time(diffusion):
    objective, params, data = diffusion
    found = pseudo_likelihood(objective, data, rows=2)(params)
    batch = {name: jnp.asarray(x[[0, 9]]) for name, x in next(iter(data.val(10))).items()}
    total, real = 0.0, np.asarray(batch['segment']) > 0
    for i in range(Texts.LENGTH):
        hidden = jnp.zeros((2, Texts.LENGTH), bool).at[:, i].set(True)
        mask = absorbing(jax.random.key(0), hidden.shape).replace(hidden=hidden)
        logits = objective.apply({'params': params}, batch, jax.random.key(0), False, mask, method='predict')['logits']
        logp = jax.nn.log_softmax(logits)[np.arange(2), i, batch['ids'][:, i]]
        total -= np.asarray(logp * real[:, i])
    assert found['eval/pseudo_nats'] == pytest.approx(total.sum() / real.sum(), rel=1e-5)
    each = total / real.sum(1)
    assert found['eval/pseudo_nats_error'] == pytest.approx(each.std(ddof=1) / 2**0.5, rel=1e-4)
    assert 'eval/pseudo_nats_error' not in pseudo_likelihood(objective, data, rows=1)(params)
