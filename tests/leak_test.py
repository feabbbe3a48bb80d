"""By gradients: hidden input never reaches a prediction, and padding reaches nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import hiding, masks, step
from mim_jax.models import SelfAttention
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
GRID = (4, 4, 4)  # of tokens of a video
SINUSOID = dict(positions='sinusoid', grid=GRID)
SEPARABLE = dict(positions='separable', grid=GRID)
CUBES = dict(
    tokenizer=dict(name='patches', key='video', patch=(2, 4, 4)),
    encoder=dict(name='ViT', width=16, depth=2, heads=2, class_token=False, **SINUSOID),
    predictor=dict(name='SelfAttention', width=16, depth=1, heads=2, **SINUSOID),
    target=dict(name='pixels', norm='channel', key='video'),
)
RUNNING_CELL = CUBES | dict(mask=dict(name='running_cell', ratio=0.75))
VIDEO = {
    'tube': CUBES | dict(mask=dict(name='tube', ratio=0.75)),
    'running cell': RUNNING_CELL,
    'random, separable positions': CUBES | dict(
        mask=dict(name='random', ratio=0.9),
        encoder=dict(name='ViT', width=16, depth=2, heads=2, **SEPARABLE),
        predictor=dict(name='SelfAttention', width=16, depth=1, heads=2, **SEPARABLE),
        target=dict(name='pixels', norm=True, first=1 / 2),
    ),
}  # fmt: skip


def method(change: dict):
    config = checks.tiny('mae')
    config.unlock()
    for slot, spec in change.items():
        holder = config.terms.pixels if slot in ('predictor', 'target') else config
        del holder[slot]
        holder[slot] = spec
    if config.tokenizer.key == 'video':
        batch = {'video': jax.random.normal(jax.random.key(0), (checks.ROWS, 8, 16, 16, 3))}
    else:
        batch = checks.view(config)
    objective = checks.build.objective(config)
    return config, objective, checks.any_params(objective, batch), batch


@pytest.mark.parametrize('name', checks.MASKED)
def test_no_config_leaks(name):
    config = checks.tiny(name)
    objective, batch = checks.build.objective(config), checks.view(config)
    checks.nothing_leaks(objective, checks.any_params(objective, batch), batch)


@pytest.mark.parametrize('clean', [False, True])
@pytest.mark.parametrize('name', checks.DENOISED)
def test_no_denoiser_leaks(name, clean):
    config = checks.tiny(name)
    if clean and not config.get('clean_terms'):
        pytest.skip('has no rows without noise')
    if 'mixer' in config:
        pytest.skip('shows every patch to its mixer, and asks for none that it hides')
    objective, batch = checks.build.objective(config), checks.view(config)
    checks.nothing_leaks(objective, checks.any_params(objective, batch), batch, **(dict(clean=True) if clean else {}))


@pytest.mark.parametrize('change', [*VARIANTS.values(), *VIDEO.values()], ids=[*VARIANTS, *VIDEO])
def test_no_combination_of_parts_leaks(change):
    _, objective, params, batch = method(change)
    checks.nothing_leaks(objective, params, batch)


def test_the_decoder_of_a_running_cell_gets_the_visible_tokens_and_the_kept_positions():
    _, objective, params, batch = method(RUNNING_CELL)
    keys, calls = step.row_keys(0, 0, checks.ROWS), []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, SelfAttention) and context.method_name == '__call__':
            calls.append(args[:3])
        return call(*args, **kwargs)

    @jax.jit
    def run(params):
        with nn.intercept_methods(spy):
            out = objective.apply({'params': params}, batch, keys, train=False, method='predict')
        return calls, out['mask'].hidden, out['terms']['pixels']['weight']

    ((z, seen, asked),), hidden, weight = jax.device_get(run(params))
    every = np.stack(np.meshgrid(*map(np.arange, GRID), indexing='ij'), -1).reshape(-1, 3)
    t, y, x = every.T
    for row in range(checks.ROWS):
        kept = [(2 * (y % 2) + x % 2 + t + start) % 4 >= 2 for start in range(4)]
        (kept,) = [k for k in kept if (every[k] == asked[row]).all()]
        np.testing.assert_array_equal(seen[row], every[~hidden[row]])
        np.testing.assert_array_equal(weight[row], hidden[row][kept])
        assert 0 < weight[row].sum() < len(weight[row])
    assert z.shape == (checks.ROWS, 16, 16)  # 4 of the 16 places of each of 4 frames


def test_a_planted_leak_is_found():
    _, objective, params, batch = method(dict(hide=dict(name='mask_token')))

    def forgets(tokens, mask, key):  # hidden values are passed on and no mask token takes their place
        _, pos, valid, _ = hiding.mask_token(tokens, mask, key)
        return tokens.raw, pos, valid, None

    with pytest.raises(AssertionError, match='48 hidden patches reach the prediction'):
        checks.nothing_leaks(objective.clone(hide=forgets), params, batch)


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


@pytest.mark.parametrize('name', checks.TOKENS)
def test_no_config_of_tokens_leaks(name):
    """Other ids where they are hidden, or later in the text, change no logit; other documents and padding neither."""
    config = checks.tiny(name)
    objective, batch = checks.build.objective(config), checks.view(config)
    batch = {key: jnp.asarray(x) for key, x in batch.items()}
    params, vocab = checks.any_params(objective, batch), objective.encoder.vocab
    other = (batch['ids'] + 1) % vocab

    @jax.jit
    def logits(ids):
        changed = batch | dict(ids=ids)
        if objective.exact:
            return objective.apply({'params': params}, objective.tokenizer(changed), None, method='left_to_right')[0]
        return objective.apply({'params': params}, changed, jax.random.key(1), method='predict')['logits']

    plain = logits(batch['ids'])
    segment = batch.get('segment', jnp.ones_like(batch['ids']))
    for place in (1, 4):
        changed = logits(batch['ids'].at[:, place].set(other[:, place]))
        same = (changed == plain).all(-1)  # bool[B, N]
        assert same[segment != segment[:, place : place + 1]].all(), 'a token reaches another document'
        if objective.exact:
            assert same[:, : place + 1].all(), 'a token reaches itself or one before it'
            assert not same[:, place + 1].any(), 'a token does not reach the next'
    if not objective.exact and config.hide.name == 'mask_token':  # BERT shows some of what it asks for
        hidden = objective.apply({'params': params}, batch, jax.random.key(1), method='predict')['mask'].hidden
        np.testing.assert_array_equal(logits(jnp.where(hidden, other, batch['ids'])), plain)
        assert hidden.any() and (logits(jnp.where(hidden, batch['ids'], other)) != plain).any()
    if 'segment' in batch:
        np.testing.assert_array_equal(
            logits(jnp.where(segment == 0, other, batch['ids']))[segment > 0], plain[segment > 0]
        )


@pytest.mark.parametrize('name', [name for name in checks.TOKENS if 'mask' in checks.shipped(name)])
def test_no_bound_of_tokens_sees_what_it_asks_for(name):
    """Whatever a config shows of hidden tokens in training, `nats` does not, or it would be no bound."""
    config = checks.tiny(name)
    objective, batch = checks.build.objective(config), checks.view(config)
    batch = {key: jnp.asarray(x) for key, x in batch.items()}
    params, vocab = checks.any_params(objective, batch), objective.encoder.vocab
    mask = masks.absorbing(jax.random.key(1), objective.tokenizer(batch).grid, by='count')
    asked = mask.hidden & (batch.get('segment', jnp.ones_like(batch['ids'])) > 0)
    blind = objective.clone(nll=lambda logits, ids: logits @ jnp.sin(jnp.arange(vocab)))  # changes with logits alone

    @jax.jit
    def told(ids):
        return blind.apply({'params': params}, batch | dict(ids=ids), jax.random.key(2), mask, method='nats')[0]

    plain, other = told(batch['ids']), (batch['ids'] + 1) % vocab
    np.testing.assert_array_equal(told(jnp.where(asked, other, batch['ids'])), plain)
    assert asked.any(1).all() and (told(jnp.where(asked, batch['ids'], other)) != plain).any()
