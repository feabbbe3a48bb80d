"""Probes of every block at every level of noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ddae
from mim_jax import build
from mim_jax.errors import InputError
from mim_jax.evals import layer_noise_probe
from mim_jax.evals.features import Split
from mim_jax.evals.linear_probe import probe

HOW = dict(lrs=(0.1,), weight_decays=(0.0,), epochs=8, seed=0)


@pytest.fixture(scope='module')
def model():
    config = ddae.get_config('tiny')
    config.encoder.update(width=16, depth=2, heads=2)
    objective = build.objective(config)
    batch = dict(image=jnp.zeros((2, 8, 8, 1)))
    rng, init = np.random.default_rng(0), lambda: objective.init(jax.random.key(0), batch, jax.random.key(1))
    shapes = jax.eval_shape(init)['params']
    return objective, jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)


def test_the_table_is_of_each_block_and_the_best_is_chosen_without_validation(model, digits):
    objective, params = model
    found = layer_noise_probe(objective, digits, times=(0.0, 1.0), rows=5000, batch_size=500, **HOW)(params)
    assert found['eval/layer_noise_time'] == 0 and found['eval/layer_noise_layer'] in (1, 2)
    assert found['layer_noise_probe'].dtype == np.uint8 and found['layer_noise_probe'].ndim == 3

    @jax.jit
    def of(batch):  # the last block by hand: what the encoder gives, before its last norm and modulation
        outs = []
        for layer in (1, 2):
            cut = objective.clone(encoder=objective.encoder.clone(depth=layer, parent=None))
            view = digits.augment(jax.random.key(0), batch, train=False)
            _, state = cut.apply(
                {'params': params}, view, method='encode', capture_intermediates=True, mutable='intermediates'
            )
            outs.append(state['intermediates']['encoder']['blocks']['__call__'][0].mean(1))
        return outs

    def split(batches):
        pairs = [(of(batch), batch['label']) for batch in batches]
        return [Split(np.concatenate([z[i] for z, _ in pairs]), np.concatenate([y for _, y in pairs])) for i in (0, 1)]

    splits = zip(split(digits.train(500, 0, shuffle=False)), split(digits.val(500)), strict=True)
    how = dict(grid=[(0.1, 0.0)], holdout=0.1, num_classes=10, epochs=8, batch_size=1024, seed=0)
    expected = [probe(*pair, **how) for pair in splits]
    best = int(np.argmax([table[0]['top1'] for _, table in expected]))
    assert found['eval/layer_noise_layer'] == best + 1
    assert found['eval/layer_noise_top1'] == pytest.approx(expected[best][0], abs=0.01)


def test_of_noise_alone_nothing_can_be_told(model, digits):
    objective, params = model
    found = layer_noise_probe(objective, digits, times=(1.0,), rows=600, batch_size=200, **HOW)(params)
    assert found['eval/layer_noise_top1'] < 0.2


def test_bad_options_are_named(model, digits):
    objective, _ = model
    with pytest.raises(InputError, match=r'times=\(0.5, 2.0\): each has to be between 0 and 1'):
        layer_noise_probe(objective, digits, times=(0.5, 2.0))
    scanned = objective.clone(encoder=objective.encoder.clone(scan=True, parent=None))
    with pytest.raises(InputError, match='set config.encoder.scan=False'):
        layer_noise_probe(scanned, digits)
