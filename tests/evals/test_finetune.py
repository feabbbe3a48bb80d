"""Fine-tuning learns real digits, and its rules are the published formulas."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import optim
from mim_jax.errors import InputError
from mim_jax.evals import finetune as ft
from mim_jax.models.heads import Classifier

PLAIN = dict(augment={}, mixup=0.0, cutmix=0.0, smoothing=0.0, drop_path=0.0)
SHORT = dict(steps=60, batch_size=50, lr=5e-3, layer_decay=0.75)


def test_learns_digits_from_scratch_and_keeps_the_given_parameters(objective, digits, params):
    before = jax.tree.map(np.array, params)
    scratch = ft.finetune(objective, digits, scratch=True, **SHORT, **PLAIN)(params)
    assert set(scratch) == {'eval/scratch_top1', 'eval/scratch_loss'}
    assert scratch['eval/scratch_top1'] > 0.6  # chance is 0.1
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_full_recipe_runs(objective, digits, params, caplog):
    caplog.set_level(logging.INFO)
    options = dict(augment=dict(erase=0.25), accumulate=2, ema=0.9, pool='cls')
    result = ft.finetune(objective, digits, **SHORT, **options)(params)
    assert result['eval/finetune_top1'] > 0.3 and np.isfinite(result['eval/finetune_loss'])
    assert 'layer 3 of 3, learning rate x 1,' in caplog.text and 'layer 0 of 3, learning rate x 0.4219' in caplog.text


def test_layer_table_is_the_formula_and_counts_every_parameter(params):
    tree = dict(classifier=dict(encoder=params['encoder'], norm=dict(scale=jnp.ones(32)), head=dict(kernel=jnp.ones((32, 10)))))
    table = ft.layer_table(tree, 2, 0.65, tuned=3)
    assert [(layer, scale) for layer, scale, _ in table] == [(i, 0.65 ** (3 - i)) for i in range(4)]
    assert sum(count for *_, count in table) == sum(leaf.size for leaf in jax.tree.leaves(tree))
    block = sum(leaf.size for leaf in jax.tree.leaves(params['encoder']['blocks']['block_0']))
    assert table[1][2] == table[2][2] == block
    assert table[3][2] == sum(leaf.size for leaf in jax.tree.leaves(params['encoder']['norm'])) + 32 + 320
    assert [scale for _, scale, _ in ft.layer_table(tree, 2, 0.5, tuned=1)] == [0, 0, 0.5, 1]


@pytest.mark.parametrize('tuned', [0, 1])
def test_frozen_layers_stay_and_cost_no_gradient(objective, digits, params, tuned):
    tree = dict(classifier=dict(encoder=params['encoder']))
    tx = ft.make_tx(tree, 2, tuned, weight_decay=0.1, layer_decay=0.5)
    ones = jax.tree.map(jnp.ones_like, tree)
    updates, _ = tx.update(ones, tx.init(tree), tree)
    moved = optim.by_path(updates, lambda path: path)
    for path, update in zip(jax.tree.leaves(moved), jax.tree.leaves(updates), strict=True):
        assert bool(jnp.any(update != 0)) == (optim.layer_of(path, 2) > 2 - tuned), path


def test_mean_pool_norms_after_pooling(objective, digits):
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
    task = ft.Classification(objective.tokenizer, Classifier(objective.encoder, 10), mix=None)
    batch = digits.augment(jax.random.key(0), next(digits.val(6)), train=False)
    variables = task.init(jax.random.key(0), batch, None, False)
    variables['params']['classifier']['head']['kernel'] += jax.random.normal(jax.random.key(2), (32, 10))
    want = task.apply(variables, jax.tree.map(lambda x: x[:3], batch), None, False)[0]
    batch['label'] = batch['label'].at[3:].set(-1) if hasattr(batch['label'], 'at') else np.r_[batch['label'][:3], -1, 0, 0]
    batch['valid'] = np.asarray([1, 1, 1, 1, 0, 0], bool)
    got, aux = task.apply(variables, batch, None, False)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert aux['rows'] == 3


@pytest.mark.parametrize(
    ('options', 'word'),
    [(dict(pool='max'), 'max'), (dict(tuned_blocks=3), '2 blocks'), (dict(batch_size=10, accumulate=3), 'accumulate=3')],
)
def test_wrong_options_are_refused_at_once(objective, digits, options, word):
    with pytest.raises(InputError, match=word):
        ft.finetune(objective, digits, **options)
