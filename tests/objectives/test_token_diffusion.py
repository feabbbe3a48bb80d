"""The bound against likelihoods found by enumeration, and the losses of both papers in NumPy f64."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import hiding
from mim_jax.losses import nll
from mim_jax.masks import Mask, absorbing
from mim_jax.models import Transformer
from mim_jax.models.condition import Condition
from mim_jax.objectives import Sequence, TokenDiffusion
from mim_jax.tokenizers import ids
from tests.samplers.enumeration import ALL, JOINT, STATES, N, V, conditionals, law, network, number
from tests.samplers.test_masked import steps_of


class Table(nn.Module):
    """An encoder that looks its answers up."""

    table: tuple
    num_prefix = 0

    def __call__(self, raw, pos, sees, hidden, condition=None, *, train=False):
        return network(np.array(self.table).reshape(len(STATES), N, V))(raw[..., 0], hidden, None)


class Same(nn.Module):
    def __call__(self, x):
        return x


def diffusion(table, mask=absorbing):
    encoder = Table(tuple(table.ravel().tolist()))
    return TokenDiffusion(ids, encoder, Same(), None, nll, mask=mask, hide=hiding.mask_token)


NOISY = 0.6 * conditionals() + 0.4 * np.random.default_rng(1).dirichlet(np.ones(V), (len(STATES), N))
TRUE = conditionals()
PATTERNS = np.array([p for p in itertools.product([False, True], repeat=N) if any(p)])


def costs(table):
    """f64[27, 7]: cross-entropy of the hidden tokens of every sequence under every pattern, by the objective's own `nats`."""
    rows, patterns = (x.reshape(-1, N) for x in np.broadcast_arrays(ALL[:, None], PATTERNS[None]))
    mask = Mask(jnp.asarray(patterns), None, jnp.asarray(patterns, jnp.float32), None)
    found, tokens = diffusion(table).apply({}, dict(ids=jnp.asarray(rows)), jax.random.key(0), mask, method='nats')
    assert (tokens == N).all()
    return np.asarray(found, np.float64).reshape(len(ALL), len(PATTERNS))


def continuous(table):
    """f64[27]: the bound, as the mean over counts of the mean cost of a hidden token (arXiv 2409.02908)."""
    counts = PATTERNS.sum(1)
    return N * sum(costs(table)[:, counts == n].mean(1) / n for n in range(1, N + 1)) / N


def discrete(table, steps, share=lambda t: t):
    """f64[27]: the bound of `steps` steps: the chance of a reveal in each times its cost."""
    total = np.zeros(len(ALL))
    for i in range(1, steps + 1):
        level, before = share(i / steps), share((i - 1) / steps)
        chance = np.prod(np.where(PATTERNS, level, 1 - level), 1)
        total += (level - before) / level * costs(table) @ chance
    return total


def orders(table):
    """f64[27]: the probability of each sequence when tokens are drawn one by one in a random order."""
    p = np.zeros(len(ALL))
    for order in itertools.permutations(range(N)):
        chance, state = np.ones(len(ALL)), np.full((len(ALL), N), V)
        for i in order:
            chance *= table[number(state), i, ALL[:, i]]
            state[:, i] = ALL[:, i]
        p += chance / 6
    return p


def test_the_bound_of_the_true_model_is_the_likelihood_of_every_sequence():
    np.testing.assert_allclose(continuous(TRUE), -np.log(JOINT), rtol=1e-5, atol=1e-5)


def test_the_bound_of_any_model_is_above_its_likelihood():
    gap = continuous(NOISY) + np.log(orders(NOISY))
    assert (gap >= -1e-6).all() and gap.max() > 1e-3
    assert JOINT @ continuous(NOISY) > JOINT @ -np.log(JOINT) + 0.01


@pytest.mark.parametrize('table', [TRUE, NOISY], ids=['true', 'noisy'])
def test_discrete_bounds_fall_to_the_continuous_one(table):
    bounds = [JOINT @ discrete(table, steps) for steps in (1, 2, 4, 8, 16, 64, 256)]
    limit = JOINT @ continuous(table)
    assert (np.diff(bounds) < 0).all() and bounds[-1] > limit
    assert bounds[-1] - limit < 0.01 * (bounds[0] - limit)


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_a_discrete_bound_is_above_the_likelihood_of_its_sampler(steps):
    exact = law(NOISY, steps, steps_of(lambda t: t, steps))
    gap = discrete(NOISY, steps) + np.log(exact)
    assert (gap >= -1e-6).all() and (steps == 1) == (gap.max() < 1e-6)  # a single step has no latent variable


@pytest.mark.parametrize('how', [
    dict(), dict(by='count'), dict(by='count', schedule='cosine'), dict(schedule='cosine'), dict(schedule='polynomial', power=2.0),
    dict(steps=4), dict(steps=4, schedule='cosine'), dict(low_discrepancy=False),
], ids=str)  # fmt: skip
def test_every_mask_estimates_its_bound_without_bias(how):
    draws = 200_000
    x = ALL[np.random.default_rng(0).choice(len(ALL), draws, p=JOINT)]
    objective = diffusion(NOISY, partial(absorbing, **how))
    found, _ = jax.jit(lambda x: objective.apply({}, dict(ids=x), jax.random.key(5), method='nats'))(jnp.asarray(x))
    found = np.asarray(found, np.float64)
    share = (lambda t: np.sin(np.pi * t / 2)) if how.get('schedule') == 'cosine' else lambda t: t
    exact = discrete(NOISY, 4, share) if 'steps' in how else continuous(NOISY)
    assert abs(found.mean() - JOINT @ exact) < 4 * found.std() / draws**0.5 + 2e-3 * ('by' not in how)


WIDTH, VOCAB = 16, 11


def small(objective=TokenDiffusion, level=False, classes=0, **options):
    encoder = Transformer(width=WIDTH, depth=2, heads=2, vocab=VOCAB)
    condition = Condition(WIDTH, level, classes) if level or classes else None
    return objective(ids, encoder, nn.Dense(VOCAB), condition, nll, **options)


def batch(rows=6, n=8, segment=(1, 1, 1, 2, 2, 2, 2, 0)):
    x = np.random.default_rng(0).integers(0, VOCAB, (rows, n))
    return dict(ids=jnp.asarray(x), segment=jnp.broadcast_to(jnp.array(segment), (rows, n)), valid=jnp.arange(rows) > 0,
                label=jnp.arange(rows) % 3)  # fmt: skip


def params_of(objective, x):
    variables = objective.init(jax.random.key(0), x, jax.random.key(1), train=False)
    return jax.tree.map(lambda p: p + 0.2 * jax.random.normal(jax.random.key(p.size), p.shape), variables)


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
@pytest.mark.parametrize('level', [False, True])
def test_the_loss_is_that_of_the_papers(schedule, level):
    x, key = batch(), jax.random.key(3)
    objective = small(level=level, mask=partial(absorbing, schedule=schedule), hide=hiding.mask_token)
    params = params_of(objective, x)
    out = objective.apply(params, x, key, method='predict')
    loss, _ = objective.apply(params, x, key, train=False)
    logits, share = np.asarray(out['logits'], np.float64), np.asarray(out['mask'].level, np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    logp = np.take_along_axis(logp, np.asarray(x['ids'])[..., None], -1)[..., 0]
    counted = np.asarray(out['mask'].hidden & (x['segment'] > 0) & x['valid'][:, None])
    tokens = 5 * 7
    if schedule == 'linear':  # MDLM: sigma = -log(1 - t), weight sigma' / (e^sigma - 1)
        sigma, slope = -np.log1p(-share), 1 / (1 - share)
        weight = slope / np.expm1(sigma)
    else:  # MD4: -alpha' / (1 - alpha) of alpha = 1 - cos(pi / 2 (1 - t))
        t = 1 - np.arccos(share) / (np.pi / 2)
        weight = np.pi / 2 * np.sin(np.pi / 2 * (1 - t)) / np.cos(np.pi / 2 * (1 - t))
    expected = -(weight[:, None] * logp * counted).sum() / tokens
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_mean_weighting_is_the_cross_entropy_of_hidden_tokens_with_smoothed_labels():
    x, key = batch(), jax.random.key(3)
    objective = small(mask=partial(absorbing, by='count', schedule='cosine'), hide=hiding.mask_token, weighting='mean',
                      smoothing=0.1)  # fmt: skip
    params = params_of(objective, x)
    out = objective.apply(params, x, key, method='predict')
    logits = np.asarray(out['logits'], np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = 0.9 * np.eye(VOCAB)[np.asarray(x['ids'])] + 0.1 / VOCAB
    counted = np.asarray(out['mask'].hidden & (x['segment'] > 0) & x['valid'][:, None])
    expected = -(target * logp).sum(-1)[counted].mean()
    np.testing.assert_allclose(objective.apply(params, x, key, train=False)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        objective.apply(params, x, key, method='nats')[0],
        -(
            np.asarray(out['mask'].weight)
            * np.take_along_axis(logp, np.asarray(x['ids'])[..., None], -1)[..., 0]
            * np.asarray(out['real'])
        ).sum(1),
        rtol=1e-5,
    )  # the bound knows nothing of smoothing


def test_the_autoregressive_loss_is_the_likelihood_of_each_document():
    """Documents of a packed row cost what they cost alone."""
    x = batch()
    objective = small(Sequence)
    params = params_of(objective, x)
    packed, tokens = objective.apply(params, x, jax.random.key(0), method='nats')
    alone = 0.0
    for part in (slice(0, 3), slice(3, 7)):
        one = dict(ids=x['ids'][:, part], valid=x['valid'])
        alone += objective.apply(params, one, jax.random.key(0), method='nats')[0]
    np.testing.assert_allclose(packed, alone, rtol=1e-5)
    np.testing.assert_array_equal(tokens, 7 * x['valid'])
    loss, _ = objective.apply(params, x, jax.random.key(0), train=False)
    np.testing.assert_allclose(loss, packed.sum() / 35, rtol=1e-6)


def test_the_autoregressive_model_sums_to_one():
    objective = small(Sequence)
    every = jnp.array(list(itertools.product(range(VOCAB), repeat=2)))
    params = params_of(objective, dict(ids=every, valid=jnp.ones(len(every), bool)))
    found, _ = objective.apply(params, dict(ids=every), jax.random.key(0), method='nats')
    np.testing.assert_allclose(np.exp(-np.asarray(found, np.float64)).sum(), 1, rtol=1e-5)


def test_labels_are_dropped_in_training_only():
    x = batch()
    objective = small(classes=3, label_dropout=1.0, mask=absorbing, hide=hiding.mask_token)
    params, key = params_of(objective, x), jax.random.key(0)
    other = x | dict(label=(x['label'] + 1) % 3)

    def loss(x, train):
        return float(objective.apply(params, x, key, train=train)[0])

    assert loss(x, True) == loss(other, True)
    assert loss(x, False) != loss(other, False)
    hidden = jnp.ones(x['ids'].shape, bool)
    answers = [
        objective.apply(params, x['ids'], hidden, None, label, method='answer')
        for label in (None, jnp.full(6, -1), x['label'])
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert np.abs(answers[0] - answers[2]).max() > 1e-3
