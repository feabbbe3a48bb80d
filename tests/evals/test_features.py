import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import sharding
from mim_jax.errors import InputError
from mim_jax.evals import few_shot, knn, linear_probe
from mim_jax.evals.features import Features, put


def encode(objective, params, data, batch):
    """The whole of [B, E + N, D], without the machinery under test."""
    batch = data.augment(jax.random.key(0), batch, train=False)
    return np.asarray(jax.jit(partial(objective.apply, method='encode'))({'params': params}, batch))


@pytest.mark.parametrize('pool', ['mean', 'cls', 'tokens'])
def test_features_are_the_encoders_tokens(objective, digits, params, pool):
    train, val = Features(objective, digits, pool=pool, batch_size=256)(params)
    batch = next(digits.val(50))
    z = encode(objective, params, digits, batch)
    expected = {'mean': z[:, 1:].mean(1), 'cls': z[:, 0], 'tokens': z[:, 1:]}[pool]
    np.testing.assert_allclose(val.features[:50], expected, atol=1e-5)
    np.testing.assert_array_equal(val.labels[:50], batch['label'])
    assert len(train.features) == digits.num_train


def test_registers_are_pooled_alone_or_not_at_all(make_objective, make_params, digits):
    objective = make_objective(registers=3, depth=1)
    params = make_params(objective, digits)
    z = encode(objective, params, digits, next(digits.val(20)))
    for pool, expected in dict(mean=z[:, 4:], registers=z[:, 1:4]).items():
        _, val = Features(objective, digits, pool=pool)(params)
        np.testing.assert_allclose(val.features[:20], expected.mean(1), atol=1e-5)


def test_batch_size_and_order_do_not_matter(objective, digits, params):
    _, expected = Features(objective, digits, batch_size=256)(params)
    _, small = Features(objective, digits, batch_size=97)(params)
    np.testing.assert_allclose(small.features, expected.features, atol=1e-5)

    def backwards(batch_size):
        whole = next(digits.val(10_000))
        return iter([{name: rows[::-1] for name, rows in whole.items()}])

    _, reverse = Features(objective, dataclasses.replace(digits, val=backwards), batch_size=797)(params)
    np.testing.assert_allclose(reverse.features[::-1], expected.features, atol=1e-5)
    np.testing.assert_array_equal(reverse.labels[::-1], expected.labels)


def test_rows_without_image_or_label_are_dropped(objective, params, make_data):
    image = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    label, valid = np.arange(12) % 3, np.ones(12, bool)
    label[[1, 9]], valid[[2, 10]] = -1, False
    train, val = Features(objective, make_data(image, label, 6, valid=valid), batch_size=4)(params)
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 2])
    np.testing.assert_array_equal(val.labels, [0, 1, 2, 2])


def test_one_pass_for_all_evaluators_until_the_parameters_change(objective, digits, params):
    passes = []

    def train(*args, **kwargs):
        passes.append(args)
        return digits.train(*args, **kwargs)

    data = dataclasses.replace(digits, train=train)
    options = dict(lrs=[0.1], weight_decays=[0.0], epochs=1, untrained=False)
    evaluators = [knn(objective, data), few_shot(objective, data, shots=(1,)), linear_probe(objective, data, **options)]
    for evaluate in evaluators:
        evaluate(params)
    assert len(passes) == 1
    evaluators[0](jax.tree.map(jnp.copy, params))
    assert len(passes) == 2


def test_no_pass_is_kept_for_parameters_that_are_gone(objective, digits, params):
    features = Features(objective, digits)
    features(jax.tree.map(jnp.copy, params))
    _, scaled = features(jax.tree.map(lambda x: 2 * x, params))
    _, plain = features(params)
    assert np.abs(scaled.features - plain.features).max() > 0.1


def test_untrained_parameters_are_those_a_run_starts_from(objective, digits, make_params):
    fresh = Features(objective, digits, batch_size=16).untrained(seed=3)
    expected = make_params(objective, digits, seed=3)['encoder']
    jax.tree.map(np.testing.assert_array_equal, fresh['encoder'], expected)


def test_a_mesh_changes_nothing(objective, digits, params):
    _, expected = Features(objective, digits, batch_size=100)(params)
    mesh = sharding.make_mesh(data=2, fsdp=2, model=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(params, mesh))
        _, val = Features(objective, digits, batch_size=100)(placed)
    np.testing.assert_allclose(val.features, expected.features, atol=1e-5)
    np.testing.assert_array_equal(val.labels, expected.labels)


def test_a_short_batch_is_filled_with_rows_that_do_not_count():
    batch = put(dict(image=np.ones((3, 2, 2, 1)), valid=np.ones(3, bool)), 5)
    assert batch['image'].shape == (5, 2, 2, 1)
    np.testing.assert_array_equal(batch['valid'], [True, True, True, False, False])


def test_wrong_use_is_one_sentence(objective, digits, params, make_objective, make_data):
    with pytest.raises(InputError, match="'max' is not one of mean, cls, registers, tokens"):
        Features(objective, digits, pool='max')
    with pytest.raises(InputError, match='class token'):
        Features(make_objective(class_token=False), digits, pool='cls')
    with pytest.raises(InputError, match='set config.encoder.registers'):
        Features(objective, digits, pool='registers')
    image = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(InputError, match='no image with a label in the validation data'):
        Features(objective, make_data(image, np.array([0, 1, -1, -1]), 2))(params)
