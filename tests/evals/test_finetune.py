"""Fine-tuning learns real digits, and its rules are the published formulas."""

import logging
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mim_jax import optim
from mim_jax.errors import InputError
from mim_jax.evals.finetune import finetune, layer_table, make_tx, start
from mim_jax.models.heads import Classifier
from mim_jax.objectives import Classification

PLAIN = dict(augment=dict(crop=None), mixup=0.0, cutmix=0.0, smoothing=0.0, drop_path=0.0, layer_decay=1.0)


def test_learns_digits_and_leaves_the_given_parameters(objective, digits, params):
    before = jax.tree.map(np.array, params)
    result = finetune(objective, digits, steps=200, batch_size=100, lr=1.5e-2, **PLAIN)(params)
    assert set(result) == {'eval/finetune_top1', 'eval/finetune_loss', 'finetune_confusion'}
    assert result['eval/finetune_top1'] > 0.7  # chance is 0.1
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_full_recipe_runs_and_tells_its_layers(objective, digits, params, caplog):
    caplog.set_level(logging.INFO)
    options = dict(augment=dict(pad=1, erase=0.25), accumulate=2, ema=0.9, pool='cls', layer_decay=0.75, scratch=True)
    result = finetune(objective, digits, steps=6, batch_size=50, **options)(params)
    assert np.isfinite(result['eval/scratch_loss']) and 0 <= result['eval/scratch_top1'] <= 1
    assert 'layer 3 of 3, learning rate x 1,' in caplog.text and 'layer 0 of 3, learning rate x 0.4219' in caplog.text


def test_start_takes_the_pretrained_encoder(objective, digits, params):
    task = Classification(objective.tokenizer, Classifier(objective.encoder, 10), mix=None)
    parts = dict(seed=0, objective=task, augment=digits.augment, tx_of=lambda _: optax.identity(), ema=True)
    state = start(params['encoder'], next(digits.val(2)), **parts)
    got = state.params['classifier']['encoder']
    assert set(params['encoder']) - set(got) == {'norm'}  # the pooled features have their own
    jax.tree.map(np.testing.assert_array_equal, got, {name: params['encoder'][name] for name in got})
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)


def test_layer_table_is_the_formula_and_counts_every_parameter(params):
    head = dict(norm=dict(scale=jnp.ones(32)), head=dict(kernel=jnp.ones((32, 10))))
    tree = dict(classifier=dict(encoder=params['encoder']) | head)
    table = layer_table(tree, 2, 0.65, tuned=3)
    assert [(layer, scale) for layer, scale, _ in table] == [(i, 0.65 ** (3 - i)) for i in range(4)]
    assert sum(count for *_, count in table) == sum(leaf.size for leaf in jax.tree.leaves(tree))
    block = sum(leaf.size for leaf in jax.tree.leaves(params['encoder']['blocks']['block_0']))
    assert table[1][2] == table[2][2] == block
    assert table[3][2] == sum(leaf.size for leaf in jax.tree.leaves(params['encoder']['norm'])) + 32 + 320
    assert [scale for _, scale, _ in layer_table(tree, 2, 0.5, tuned=1)] == [0, 0, 0.5, 1]


@pytest.mark.parametrize('tuned', [0, 1])
def test_frozen_layers_stay(params, tuned):
    tree = dict(classifier=dict(encoder=params['encoder']))
    tx = make_tx(tree, 2, tuned, weight_decay=0.1, layer_decay=0.5)
    ones = jax.tree.map(jnp.ones_like, tree)
    updates, _ = tx.update(ones, tx.init(tree), tree)
    moved = optim.by_path(updates, lambda path: path)
    for path, update in zip(jax.tree.leaves(moved), jax.tree.leaves(updates), strict=True):
        assert bool(jnp.any(update != 0)) == (optim.layer_of(path, 2) > 2 - tuned), path


def test_mean_pool_norms_after_pooling():
    class Encoder(nn.Module):
        num_prefix = 1

        @nn.compact
        def __call__(self, raw, pos, valid=None, hidden=None, *, train=False):
            return nn.LayerNorm(name='norm')(jnp.pad(raw, ((0, 0), (1, 0), (0, 0)), constant_values=9.0))

    raw = jax.random.normal(jax.random.key(0), (2, 5, 8))
    valid = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])
    model = Classifier(Encoder(), 4)
    variables = model.init(jax.random.key(1), raw, raw, valid)
    assert set(variables['params']) == {'norm', 'head'}  # the encoder's norm is gone
    assert 0 < jnp.abs(variables['params']['head']['kernel']).max() <= 4.1e-5
    _, features = model.apply(variables, raw, raw, valid)
    mean = np.stack([np.mean(raw[0], 0), np.mean(raw[1, :3], 0)])
    want = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(features, want, atol=1e-5)


def test_rows_without_label_or_pixels_do_not_count(objective, digits):
    task = Classification(objective.tokenizer, Classifier(objective.encoder, 10), mix=None)
    key, batch = jax.random.key(0), digits.augment(jax.random.key(0), next(digits.val(6)), train=False)
    variables = jax.jit(partial(task.init, train=False))(key, batch, key)
    variables['params']['classifier']['head']['kernel'] += jax.random.normal(key, (32, 10))
    score = jax.jit(partial(task.apply, train=False))
    want, _ = score(variables, jax.tree.map(lambda x: x[:3], batch), key)
    label, valid = np.asarray(batch['label']), np.asarray([1, 1, 1, 1, 0, 0], bool)
    got, aux = score(variables, batch | dict(label=np.where(np.arange(6) == 3, -1, label), valid=valid), key)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert aux['rows'] == 3


@pytest.mark.parametrize(
    ('options', 'word'),
    [
        (dict(pool='max'), 'max'),
        (dict(tuned_blocks=3), '2 blocks'),
        (dict(batch_size=10, accumulate=3), 'accumulate=3'),
    ],
)
def test_wrong_options_are_refused_at_once(objective, digits, options, word):
    with pytest.raises(InputError, match=word):
        finetune(objective, digits, **options)
