"""MAR: its head and its loss against the formulas of the authors' code, in NumPy f64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mar
from mim_jax import build, noise, step
from mim_jax.models import DiffusionHead
from tests import checks

ROWS = checks.ROWS


def config(**changes):
    made = mar.get_config('tiny')
    made.encoder.update(width=16, depth=1, heads=2, registers=2)
    made.predictor.update(width=16, depth=1, heads=2)
    made.head.update(width=8, depth=2)
    made.data.batch_size = ROWS
    made.update_from_flattened_dict(changes)
    return made


@pytest.fixture(scope='module')
def made():
    c = config()
    objective, batch = build.objective(c), checks.view(c)
    batch['valid'] = jnp.arange(ROWS) != 1
    return objective, checks.any_params(objective, batch), batch


def head(p, x, t, told):
    """models/diffloss.py of github.com/LTH14/mar, SimpleMLPAdaLN."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    silu = lambda a: a / (1 + np.exp(-a))  # noqa: E731
    dense = lambda p, a: a @ p['kernel'] + p['bias']  # noqa: E731

    def norm(p, a):
        a = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)
        return a * p['scale'] + p['bias']

    angle = 1000 * t[:, None] * 10000.0 ** (-np.arange(128) / 128)
    waves = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    y = told + dense(p['time']['level2'], silu(dense(p['time']['level1'], waves)))
    x = dense(p['embed'], x)
    for i in range(2):
        shift, scale, gate = np.split(dense(p[f'modulation_{i}']['out'], silu(y)), 3, -1)
        branch = norm(p[f'norm_{i}'], x) * (1 + scale) + shift
        x = x + gate * dense(p[f'fc2_{i}'], silu(dense(p[f'fc1_{i}'], branch)))
    shift, scale = np.split(dense(p['modulation']['out'], silu(y)), 2, -1)
    return dense(p['out'], norm(p['norm'], x) * (1 + scale) + shift)


def test_the_head_is_that_of_the_paper():
    x, told, t = (
        jax.random.normal(jax.random.key(0), (5, 3)),
        jax.random.normal(jax.random.key(1), (5, 8)),
        jnp.linspace(0.1, 1, 5),
    )
    module = DiffusionHead(8, 2)
    shapes = jax.eval_shape(module.init, jax.random.key(2), x, t, told)['params']
    rng = np.random.default_rng(0)
    p = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), jnp.float32), shapes)
    expected = head(p, *(np.asarray(a, np.float64) for a in (x, t, told)))
    np.testing.assert_allclose(checks.applied(module, {'params': p}, x, t, told), expected, atol=2e-4)


def test_the_loss_is_the_mean_error_over_hidden_tokens_of_real_rows(made):
    objective, params, batch = made
    keys = step.row_keys(0, 0, ROWS)

    def look(module):
        out = module.predict(batch, keys)
        return out, module.noised(out, keys)

    out, noised = checks.applied(objective, {'params': params}, method=look)
    noised = {name: np.asarray(x, np.float64) for name, x in noised.items()}
    turn = (np.pi / 2 - 1e-3) * noised['t'][..., None]
    alpha, sigma = np.cos(turn), np.sin(turn)
    assert len(np.unique(noised['t'])) > ROWS * 32  # each token and draw has its own time
    raw = np.tile(np.asarray(out['tokens'].raw, np.float64), (1, 4, 1))
    np.testing.assert_allclose(noised['noised'], alpha * raw + sigma * noised['noise'], atol=1e-5)
    told = np.tile(np.asarray(out['answers']['told'], np.float64), (1, 4, 1))
    flat = [x.reshape(-1, *x.shape[2:]) for x in (noised['noised'], noised['t'], told)]
    answer = head(params['head'], *flat).reshape(raw.shape)
    counts = np.tile(np.asarray(out['mask'].hidden) & np.asarray(batch['valid'])[:, None], (1, 4))
    expected = (((answer - noised['noise']) ** 2).mean(-1) * counts).sum() / counts.sum()
    loss, aux = checks.applied(objective, {'params': params}, batch, keys, train=False)
    np.testing.assert_allclose(loss, expected, rtol=2e-4)
    assert 0.8 < aux['baseline'] < 1.2 and aux['features'].shape == (ROWS, 16)


def test_a_told_token_depends_on_no_token_that_fills_up_a_row(made):
    """Rows differ in their number of visible tokens; what stands in the empty places reaches nothing."""
    objective, params, batch = made
    keys = step.row_keys(0, 0, ROWS)
    checks.nothing_leaks(objective, params, batch)
    mask = objective.mask(keys, (ROWS, 4, 4))
    assert mask.most_visible == 4 and len(np.unique(mask.hidden.sum(-1))) > 1


def test_the_best_answer_is_that_of_a_gaussian():
    """A token that is normal with a mean and deviation known: the answer that denoises best is linear, and `denoise` is it."""

    class Best:
        answer, schedule = 'noise', noise.cosine()

        def head(self, x, t, told):
            alpha, sigma = (z[:, None] for z in self.schedule.level(t))
            mean, std = told[:, :1], told[:, 1:]
            return sigma * (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)

    from mim_jax.objectives import MaskedAutoregression

    x, t, told = jnp.array([[0.7], [-1.0]]), jnp.array([0.3, 0.8]), jnp.array([[0.5, 2.0], [1.0, 0.1]])
    clean, _ = MaskedAutoregression.denoise(Best(), x, t, told)
    alpha, sigma = (np.asarray(z)[:, None] for z in noise.cosine().level(t))
    mean, variance = told[:, :1], told[:, 1:] ** 2
    expected = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
    np.testing.assert_allclose(clean, expected, rtol=1e-5)


def test_the_class_is_told_and_probes_see_everything(made):
    objective, params, batch = made
    tokens = objective.tokenizer(batch)
    mask = objective.mask(step.row_keys(0, 0, ROWS), tokens.grid)
    told = [
        checks.applied(objective, {'params': params}, tokens, mask, jnp.full(ROWS, i), method='tell')[0] for i in (0, 1)
    ]
    assert jnp.abs(told[0] - told[1]).max() > 1e-3
    assert checks.applied(objective, {'params': params}, batch, method='encode').shape == (ROWS, 2 + 16, 16)
