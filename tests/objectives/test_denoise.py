"""Masked diffusion of continuous tokens against the formulas of the papers' code, in NumPy f64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import build, masks, noise, step
from tests import checks


@pytest.fixture(scope='module')
def made():
    def make(name, **terms):
        config = checks.tiny(name)
        for change in terms.items():
            config.update(dict([change]))
        objective, batch = build.objective(config), checks.view(config)
        batch['valid'] = jnp.arange(checks.ROWS) != 1
        return objective, checks.any_params(objective, batch), batch

    return make


def seen(objective, params, batch, keys, **how):
    """Outputs in f64, with tokens of the image in the order of the answers."""
    out = checks.applied(objective, {'params': params}, batch, keys, method='predict', **how)
    n = out['noised'].shape[1]
    index = np.argsort(np.asarray(out['mask'].hidden), 1, kind='stable')[
        ..., None
    ]  # visible ones first, each in ascending order
    f = {name: np.asarray(x, np.float64) for name, x in out['answers'].items()}
    clean, noised, added = (
        np.take_along_axis(np.asarray(x, np.float64), index, 1)
        for x in (out['tokens'].raw, out['noised'], out['noise'])
    )
    visible = np.broadcast_to(np.arange(n) < out['mask'].num_visible, clean.shape[:2])
    return f, clean, noised, added, visible, np.asarray(out['t'], np.float64)


def mean(error, which, valid):
    which = which & np.asarray(valid)[:, None]
    return (error.mean(-1) * which).sum() / which.sum()


def test_umd_is_half_reconstruction_without_noise_and_half_both(made):
    """train_ae.py of github.com/philippe-eecs/small-vision: (eps on visible + x0 on hidden) / 2 of one half, x0 on hidden of the other."""
    objective, params, batch = made('umd')
    keys = step.row_keys(0, 0, checks.ROWS)
    loss, aux = checks.applied(objective, {'params': params}, batch, keys, train=False)
    odd, even = ({k: x[i::2] for k, x in batch.items()} for i in (1, 0))
    f, clean, _, added, visible, _ = seen(objective, params, odd, keys[1::2])
    noised = (
        mean((f['noise'] - added) ** 2, visible, odd['valid']) + mean((f['clean'] - clean) ** 2, ~visible, odd['valid'])
    ) / 2
    f, clean, as_given, _, visible, t = seen(objective, params, even, keys[::2], clean=True)
    np.testing.assert_array_equal(as_given, clean)
    assert (t == 0).all()
    without = mean((f['clean'] - clean) ** 2, ~visible, even['valid'])
    np.testing.assert_allclose(loss, (noised + without) / 2, rtol=2e-6)
    np.testing.assert_allclose(aux['loss_clean_clean'], without, rtol=2e-6)
    other = checks.applied(
        objective, {'params': params}, batch | dict(label=(batch['label'] + 1) % 10), keys, train=False
    )[1]
    assert other['loss_clean_clean'] == aux['loss_clean_clean'] and other['loss_noise'] != aux['loss_noise']


def test_maskdit_is_edm_on_visible_and_a_tenth_of_mae_on_hidden(made):
    """train_utils/loss.py of github.com/Anima-Lab/MaskDiT."""
    objective, params, batch = made('maskdit')
    keys = step.row_keys(0, 0, checks.ROWS)
    loss, _ = checks.applied(objective, {'params': params}, batch, keys, train=False)
    f, clean, noised, _, visible, t = seen(objective, params, batch, keys)
    sigma, d = np.asarray(noise.karras().level(jnp.asarray(t, jnp.float32))[1], np.float64)[:, None, None], 0.5
    denoised = d**2 / (sigma**2 + d**2) * noised + sigma * d / np.sqrt(sigma**2 + d**2) * f['edm']
    weight = (sigma**2 + d**2) / (sigma * d) ** 2
    goal = (noised - noised.mean(-1, keepdims=True)) / np.sqrt(noised.var(-1, keepdims=True, ddof=1) + 1e-6)
    expected = mean(weight * (denoised - clean) ** 2, visible, batch['valid'])
    expected += 0.1 * mean((denoised - goal) ** 2, ~visible, batch['valid'])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_dit_asks_for_the_noise_of_every_token(made):
    objective, params, batch = made('dit')
    keys = step.row_keys(0, 0, checks.ROWS)
    loss, aux = checks.applied(objective, {'params': params}, batch, keys, train=False)
    f, _, _, added, visible, _ = seen(objective, params, batch, keys)
    assert visible.all()
    np.testing.assert_allclose(loss, mean((f['noise'] - added) ** 2, visible, batch['valid']), rtol=2e-6)
    assert 0.8 < aux['baseline'] < 1.2  # the variance of the noise


def test_what_is_clean_and_what_is_noise_make_what_was_given(made):
    objective, params, batch = made('maskdit')
    x, t = 3 * batch['image'], jnp.linspace(0.1, 0.9, checks.ROWS)
    clean, added = checks.applied(objective, {'params': params}, x, t, jnp.arange(checks.ROWS), method='denoise')
    alpha, sigma = (z[:, None, None, None] for z in noise.karras().level(t))
    np.testing.assert_allclose(alpha * clean + sigma * added, x, atol=1e-4)


def test_a_noised_row_depends_on_its_own_key_alone(made):
    objective, params, batch = made('umd')
    keys = step.row_keys(0, 0, checks.ROWS)
    t = jnp.full(checks.ROWS, 0.5)
    whole = checks.applied(objective, {'params': params}, batch, keys, t=t, method='predict')
    part = checks.applied(
        objective, {'params': params}, {k: x[2:] for k, x in batch.items()}, keys[2:], t=t[2:], method='predict'
    )
    np.testing.assert_array_equal(whole['noised'][2:], part['noised'])
    np.testing.assert_allclose(whole['answers']['noise'][2:], part['answers']['noise'], atol=2e-5)


def test_rows_that_do_not_divide_are_refused(made):
    objective, params, batch = made('umd')
    with pytest.raises(ValueError, match='3 rows are no multiple of objective.clean_every=2'):
        objective.apply({'params': params}, {k: x[:3] for k, x in batch.items()}, step.row_keys(0, 0, 3))


@pytest.mark.parametrize(('term', 'why'), [
    (dict(of='velocity'), 'of=velocity: config.answers has clean, noise'), (dict(on='some'), "on=some: it has to be 'visible'"),
], ids=str)  # fmt: skip
def test_a_term_that_cannot_be_is_named(term, why):
    config = checks.tiny('umd')
    config.terms.noise.update(term)
    with pytest.raises(build.InputError, match=why):
        build.objective(config)


def test_guidance_is_told_the_class(made):
    objective, params, batch = made('umd')
    x, t = batch['image'], jnp.full(checks.ROWS, 0.5)
    run = jax.jit(lambda label: objective.apply({'params': params}, x, t, label, method='denoise')[0])
    assert jnp.abs(run(jnp.zeros(checks.ROWS, int)) - run(jnp.ones(checks.ROWS, int))).max() > 1e-3


def test_a_mixer_sees_every_patch_and_only_visible_ones_are_asked(made):
    """Deferred masking (arXiv 2407.15811)."""
    objective, params, batch = made('microdit')
    keys = step.row_keys(0, 0, checks.ROWS)
    loss, _ = objective.apply({'params': params}, batch, keys, train=False)
    out = objective.apply({'params': params}, batch, keys, method='predict')
    mask, n = out['mask'], out['noised'].shape[1]
    assert out['answers']['edm'].shape[1] == mask.num_visible == n // 4
    f, seen_by = np.asarray(out['answers']['edm'], np.float64), np.asarray(mask.visible)[..., None]
    clean, noised = (
        np.take_along_axis(np.asarray(x, np.float64), seen_by, 1) for x in (out['tokens'].raw, out['noised'])
    )
    sigma, d = np.asarray(noise.karras().level(out['t'])[1], np.float64)[:, None, None], 0.5
    denoised = d**2 / (sigma**2 + d**2) * noised + sigma * d / np.sqrt(sigma**2 + d**2) * f
    error = (sigma**2 + d**2) / (sigma * d) ** 2 * (denoised - clean) ** 2
    np.testing.assert_allclose(loss, mean(error, np.ones(f.shape[:2], bool), batch['valid']), rtol=1e-5)

    def reach(image):
        return objective.apply({'params': params}, batch | dict(image=image), keys, mask=mask, method='predict')[
            'answers'
        ]['edm'].sum()

    grad = jax.grad(reach)(batch['image'])
    assert (jnp.abs(objective.tokenizer(dict(image=grad)).raw).max(-1) > 0).all()


def test_a_term_that_is_not_answered_is_refused(made):
    objective, params, batch = made('microdit')
    wrong = objective.clone(terms=dict(denoised=objective.terms['denoised']._replace(on='all')))
    with pytest.raises(ValueError, match=r'terms.denoised.on=all: this predictor answers visible tokens only'):
        wrong.apply({'params': params}, batch, step.row_keys(0, 0, checks.ROWS), train=False)


def test_noise_is_not_asked_where_nothing_else_is_left():
    config = checks.tiny('dit')
    config.noise.schedule = dict(name='flow')
    with pytest.raises(build.InputError, match="schedule.name=flow ends in noise alone, of which the answer 'noise'"):
        build.objective(config)


def test_rows_have_to_hide_as_many(made):
    objective, params, batch = made('maskdit')
    mask = masks.varying(jax.random.key(0), (checks.ROWS, 4, 4))
    with pytest.raises(ValueError, match='take one that hides as many in each'):
        objective.apply({'params': params}, batch, step.row_keys(0, 0, checks.ROWS), mask=mask, method='predict')
