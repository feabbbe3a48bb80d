"""The forward process against closed forms, and its weights against NumPy f64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.masks import absorbing, schedule

ROWS, N = 20_000, 12
SCHEDULES = [('linear', 1.0), ('cosine', 1.0), ('polynomial', 2.0), ('polynomial', 0.5)]
ALPHA = dict(  # of arXiv 2406.04329 and 2406.07524, in NumPy f64
    linear=lambda t, w: 1 - t, cosine=lambda t, w: 1 - np.cos(np.pi / 2 * (1 - t)), polynomial=lambda t, w: 1 - t**w
)


def draw(**options):
    return jax.jit(lambda key: absorbing(key, (ROWS, N), **options))(jax.random.key(3))


@pytest.mark.parametrize(('name', 'power'), SCHEDULES)
def test_the_schedule_is_the_papers(name, power):
    kind, t = schedule(name, power), np.linspace(0.01, 0.99, 99)

    def alpha(t):
        return ALPHA[name](t, power)

    np.testing.assert_allclose(kind.share(jnp.float32(t)), 1 - alpha(t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kind.inverse(kind.share(jnp.float32(t))), t, rtol=1e-3)
    slope = (alpha(t + 1e-6) - alpha(t - 1e-6)) / 2e-6
    np.testing.assert_allclose(kind.rate(jnp.float32(t)), -slope / (1 - alpha(t)), rtol=2e-4)


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="'sine' is not one of linear"):
        schedule('sine')


@pytest.mark.parametrize(('name', 'power'), SCHEDULES)
def test_hidden_share_grows_with_the_level(name, power):
    mask = draw(schedule=name, power=power)
    level, hidden = np.asarray(mask.level), np.asarray(mask.hidden)
    for low in np.arange(0, 1, 0.25):
        rows = (level > low) & (level <= low + 0.25)
        if rows.sum() > 100:
            error = hidden[rows].mean() - level[rows].mean()
            assert abs(error) < 4 * 0.5 / np.sqrt(rows.sum() * N)


def test_times_of_low_discrepancy_are_spread_evenly():
    level = np.sort(np.asarray(draw().level))
    np.testing.assert_allclose(
        np.maximum(np.arange(1, ROWS + 1) / ROWS, 1e-3), np.maximum(level, 1e-3), atol=1.01 / ROWS
    )


@pytest.mark.parametrize(('name', 'power'), SCHEDULES)
@pytest.mark.parametrize(
    'how', [dict(), dict(low_discrepancy=False), dict(by='count')], ids=['time', 'independent', 'count']
)
def test_a_constant_loss_is_bounded_by_itself(name, power, how):
    """If each hidden token costs 1 nat, all of them cost N: the weights of a row add up to N on average."""
    mask = draw(schedule=name, power=power, **how)
    total = np.asarray(mask.weight.sum(1), np.float64)
    assert abs(total.mean() - N) < 4 * total.std() / np.sqrt(ROWS) + 1e-3


@pytest.mark.parametrize('steps', [1, 2, 7, 100])
def test_discrete_time_weighs_each_step_by_the_chance_of_a_reveal(steps):
    mask = draw(schedule='cosine', steps=steps)
    t = np.arange(1, steps + 1) / steps
    alpha = ALPHA['cosine'](np.append(0, t), 1)
    expected = steps * (alpha[:-1] - alpha[1:]) / (1 - alpha[1:])
    step = np.abs(np.asarray(mask.level)[:, None] - (1 - alpha[1:])).argmin(1)
    rows, columns = np.nonzero(np.asarray(mask.hidden))
    np.testing.assert_allclose(np.asarray(mask.weight)[rows, columns], expected[step[rows]], rtol=1e-4, atol=1e-5)
    assert abs(np.asarray(mask.weight.sum(1)).mean() - N) < 0.5


def test_counts_are_exact_and_uniform():
    mask = draw(by='count')
    counts = np.asarray(mask.hidden.sum(1))
    np.testing.assert_array_equal(np.bincount(counts, minlength=N + 1)[1:].round(-1), np.full(N, ROWS / N).round(-1))
    np.testing.assert_allclose(mask.level, counts / N, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(mask.weight.max(1)), N / counts, rtol=1e-4)


def test_maskgit_counts_follow_the_cosine():
    counts = np.asarray(draw(by='count', schedule='cosine').hidden.sum(1))
    r = (np.arange(ROWS * 4) + 0.5) / (ROWS * 4)
    expected = np.bincount(np.ceil(np.cos(np.pi / 2 * r) * N).astype(int), minlength=N + 1) / 4
    np.testing.assert_allclose(np.bincount(counts, minlength=N + 1), expected, atol=3)


def test_counts_have_no_steps():
    with pytest.raises(ValueError, match='counts have no steps'):
        absorbing(jax.random.key(0), (2, 4), by='count', steps=3)


@pytest.mark.parametrize('how', [
    dict(schedule='polynomial', power=0.0), dict(schedule='polynomial', power=-1.0), dict(power=float('nan')), dict(eps=0.0), dict(eps=1.0),
    dict(steps=-2), dict(steps=2.5),
], ids=str)  # fmt: skip
def test_an_option_out_of_range_is_named(how):
    name = list(how)[-1]
    with pytest.raises(ValueError, match=f'{name}={how[name]}'):
        absorbing(jax.random.key(0), (2, 4), **how)


@pytest.mark.parametrize(('power', 'most'), [(0.5, 1.0), (1.0, 1.0), (3.0, 3.0)])
def test_weights_stay_below_their_bound(power, most):
    assert draw(schedule='polynomial', power=power, eps=0.1).weight.max() <= most / 0.1 * (1 + 1e-6)


def test_a_key_per_row_gives_a_row_its_own_tokens():
    keys = jax.random.split(jax.random.key(0), 4)
    a, b = absorbing(keys, (4, 64)), absorbing(keys.at[1:].set(keys[1]), (4, 64))
    np.testing.assert_array_equal(a.hidden[0], b.hidden[0])
