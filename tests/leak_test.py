"""By gradients: hidden input never reaches a prediction, and padding reaches nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import hiding, step
from tests import checks

VARIANTS = {
    'self-attention': {},
    'cross-attention': dict(predictor=dict(name='CrossAttention', width=16, depth=1, heads=2)),
    'linear': dict(predictor=dict(name='Linear'), hide=dict(name='mask_token')),
    'mask token': dict(hide=dict(name='mask_token')),
    'block': dict(mask=dict(name='block', ratio=0.5)),
    'grid': dict(mask=dict(name='grid')),
    'no class token, registers': dict(
        encoder=dict(name='ViT', width=16, depth=2, heads=2, class_token=False, registers=2)
    ),
}


def method(change: dict):
    config = checks.tiny('mae')
    config.unlock()
    for slot, spec in change.items():
        holder = config.terms.pixels if slot == 'predictor' else config
        del holder[slot]
        holder[slot] = spec
    objective, batch = checks.build.objective(config), checks.view(config)
    return config, objective, checks.any_params(objective, batch), batch


@pytest.mark.parametrize('name', checks.CONFIGS)
def test_no_config_leaks(name):
    config = checks.tiny(name)
    objective, batch = checks.build.objective(config), checks.view(config)
    checks.nothing_leaks(objective, checks.any_params(objective, batch), batch, tuple(config.tokenizer.patch))


@pytest.mark.parametrize('change', VARIANTS.values(), ids=VARIANTS)
def test_no_combination_of_parts_leaks(change):
    config, objective, params, batch = method(change)
    checks.nothing_leaks(objective, params, batch, tuple(config.tokenizer.patch))


def test_a_planted_leak_is_found():
    config, objective, params, batch = method(dict(hide=dict(name='mask_token')))

    def forgets(tokens, mask, key):  # hidden values are passed on and no mask token takes their place
        _, pos, valid, _ = hiding.mask_token(tokens, mask, key)
        return tokens.raw, pos, valid, None

    with pytest.raises(AssertionError, match='48 hidden patches reach the prediction'):
        checks.nothing_leaks(objective.clone(hide=forgets), params, batch, tuple(config.tokenizer.patch))


@pytest.mark.parametrize('change', VARIANTS.values(), ids=VARIANTS)
def test_padding_reaches_nothing(change):
    config, objective, params, batch = method(change)
    p = config.tokenizer.patch[0]
    batch['size'] = jnp.full((checks.ROWS, 2), 4 * p).at[1].set(jnp.array([3 * p, 2 * p]))
    keys = step.row_keys(0, 0, checks.ROWS)
    real = (jnp.arange(4 * p)[:, None] < 3 * p) & (jnp.arange(4 * p) < 2 * p)
    noise = jax.random.normal(jax.random.key(5), batch['image'].shape[1:])
    noisy = batch['image'].at[1].set(jnp.where(real[..., None], batch['image'][1], noise))
    run = jax.jit(
        lambda image: jax.value_and_grad(
            lambda p: objective.apply({'params': p}, batch | {'image': image}, keys, train=False)[0]
        )(params)
    )
    for a, b in zip(jax.tree.leaves(run(batch['image'])), jax.tree.leaves(run(noisy)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_record_that_could_not_be_decoded_reaches_nothing():
    config, objective, params, batch = method({})
    keys = step.row_keys(0, 0, checks.ROWS)
    valid = jnp.arange(checks.ROWS) != 2
    loss = jax.jit(
        lambda image: objective.apply({'params': params}, batch | {'image': image, 'valid': valid}, keys, train=False)[
            0
        ]
    )
    np.testing.assert_array_equal(loss(batch['image']), loss(batch['image'].at[2].set(7.0)))
