import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mim_jax.evals import linear_probe
from mim_jax.evals.features import Split
from mim_jax.evals.linear_probe import fit, probe, standardise

SMALL = dict(lrs=[0.1, 0.3], weight_decays=[0.0, 0.01], epochs=10)


@pytest.fixture(scope='module')
def splits(digit_arrays):
    x, y = digit_arrays
    return Split(x[:1000], y[:1000]), Split(x[1000:], y[1000:])


def test_converges_to_logistic_regression(splits):
    """Both minimise the mean cross-entropy plus weight_decay / 2 |w|^2, biases free."""
    (x, y), _ = splits
    (x,) = standardise(x)
    head = fit(jax.random.key(0), x, y, np.array([0.3]), np.array([0.1]), num_classes=10, epochs=300, batch_size=1000)
    reference = LogisticRegression(C=1 / (0.1 * len(y)), tol=1e-8, max_iter=1000).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(head['w'][0], reference.coef_.T, atol=1e-3)
    centred = reference.intercept_ - reference.intercept_.mean()
    np.testing.assert_allclose(head['b'][0] - head['b'][0].mean(), centred, atol=1e-3)


def test_heads_of_a_grid_do_not_touch(splits):
    (x, y), _ = splits
    lr, decay = np.array([0.01, 0.3, 1.0], np.float32), np.array([0.1, 0.0, 0.01], np.float32)
    how = dict(num_classes=10, epochs=3, batch_size=128)
    together = fit(jax.random.key(0), x, y, lr, decay, **how)
    alone = fit(jax.random.key(0), x, y, lr[1:2], decay[1:2], **how)
    np.testing.assert_allclose(together['w'][1], alone['w'][0], atol=1e-5)


def test_as_good_as_the_best_logistic_regression_on_pixels(splits):
    train, val = splits
    grid = [(lr, decay) for lr in (0.03, 0.1, 0.3) for decay in (0.0, 0.01)]
    top1, table = probe(train, val, grid=grid, holdout=0.1, seed=0, num_classes=10, epochs=60, batch_size=1024)
    x, x_val = standardise(train.features, val.features)
    best = max(
        LogisticRegression(C=c, max_iter=500).fit(x, train.labels).score(x_val, val.labels) for c in (0.01, 0.1, 1)
    )
    assert top1 >= best - 0.015
    assert [row['top1'] for row in table] == sorted((row['top1'] for row in table), reverse=True)


def test_the_validation_split_chooses_nothing(splits):
    train, val = splits
    options = dict(grid=[(0.1, 0.0), (0.3, 0.1)], holdout=0.1, seed=0, num_classes=10, epochs=5, batch_size=128)
    _, table = probe(train, val, **options)
    wrong, same = probe(train, Split(val.features, (val.labels + 1) % 10), **options)
    assert same == table
    assert wrong < 0.1


def test_standardise_uses_the_first_and_survives_dead_features():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    train, val = standardise(x, np.array([[2.0, 5.0], [5.0, 5.0]]))
    np.testing.assert_allclose(train, [[-1, 0], [1, 0]], atol=1e-5)
    np.testing.assert_allclose(val, [[0, 0], [3, 0]], atol=1e-5)


def test_evaluator_tells_the_untrained_encoder_and_the_grid(objective, digits, params, make_params):
    evaluate = linear_probe(objective, digits, **SMALL)
    result = evaluate(make_params(objective, digits, seed=0))
    assert result['eval/linear_top1'] == result['eval/linear_top1_untrained'] > 0.3  # seed 0 is that untrained encoder
    assert len(evaluate.grid) == 4
    assert evaluate.grid[0]['lr'] == result['eval/linear_lr']
    assert result == linear_probe(objective, digits, **SMALL)(params)
