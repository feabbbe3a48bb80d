import dataclasses

import jax
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

from mim_jax.errors import InputError
from mim_jax.evals import attentive_probe
from mim_jax.evals.attentive_probe import AttentiveClassifier, hits, slices, train_step
from mim_jax.evals.features import Split

HEAD = AttentiveClassifier(num_classes=4, heads=2)


@pytest.fixture(scope='module')
def needles():
    """Tokens of noise, of which one at a random place tells the class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 512).astype(np.int32)
    tokens = rng.normal(size=(512, 8, 8)).astype(np.float32)
    tokens[np.arange(512), rng.integers(0, 8, 512)] = 3 * (np.eye(8)[labels] + np.eye(8)[7])
    return Split(tokens, labels)


def accuracy(params, split):
    right, total = hits(params, split.features, split.labels, np.ones(len(split.labels), bool), head=HEAD)
    return right / total


def test_finds_the_token_that_tells(needles):
    tx = optax.adamw(1e-2)
    params = jax.jit(HEAD.init)(jax.random.key(0), needles.features[:1])['params']
    state = params, tx.init(params)
    for epoch in range(25):
        for batch in slices(needles, np.random.default_rng(epoch).permutation(512), 128):
            state = train_step(state, *batch, head=HEAD, tx=tx)
    mean = needles.features.mean(1)
    assert LogisticRegression().fit(mean, needles.labels).score(mean, needles.labels) < 0.7
    assert accuracy(state[0], needles) > 0.97


def test_order_of_tokens_does_not_matter(needles):
    params = jax.jit(HEAD.init)(jax.random.key(0), needles.features[:1])['params']
    x = needles.features[:8]
    np.testing.assert_allclose(HEAD.apply({'params': params}, x), HEAD.apply({'params': params}, x[:, ::-1]), atol=1e-5)


def test_rows_that_do_not_count_have_no_say(needles):
    tx = optax.sgd(0.1)

    def step(tokens, counts):
        params = jax.jit(HEAD.init)(jax.random.key(0), tokens[:1])['params']
        state = train_step((params, tx.init(params)), tokens, needles.labels[:8], counts, head=HEAD, tx=tx)
        return state[0], hits(state[0], tokens, needles.labels[:8], counts, head=HEAD)

    x, counts = needles.features[:8].copy(), np.arange(8) < 5
    expected, score = step(x, counts)
    x[5:] += 100
    params, other = step(x, counts)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert score[1] == other[1] == 5 and score[0] == other[0]


def test_slices_cover_the_order_once(needles):
    batches = list(slices(needles, np.arange(300), 128))
    labels = np.concatenate([label[counts] for _, label, counts in batches])
    np.testing.assert_array_equal(labels, needles.labels[:300])
    assert all(len(tokens) == 128 for tokens, _, _ in batches)


@pytest.mark.parametrize('cache_gb', [1, 0])
def test_learns_on_digits_cached_or_not(objective, digits, params, cache_gb):
    evaluate = attentive_probe(objective, digits, cache_gb=cache_gb, epochs=8, lr=1e-2, batch_size=100)
    result = evaluate(params)
    assert result == evaluate(params)
    assert 0.3 < result['eval/attentive_top1'] < 1


def test_no_label_is_told(objective, digits, params):
    def val(batch_size):
        return ({**batch, 'label': np.full_like(batch['label'], -1)} for batch in digits.val(batch_size))

    evaluate = attentive_probe(objective, dataclasses.replace(digits, val=val))
    with pytest.raises(InputError, match='no image with a label in the validation data'):
        evaluate(params)
