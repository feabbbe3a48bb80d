import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mim_jax.evals import few_shot
from mim_jax.evals.few_shot import draw, ridge


@pytest.mark.parametrize('n', [10, 300])  # fewer and more rows than columns: both systems
def test_ridge_equals_scikit_learn(n, digit_arrays):
    x, labels = digit_arrays
    x, y = x[:n], np.eye(10, dtype=np.float32)[labels[:n]]
    w, b = ridge(x, y, 3.0)
    reference = Ridge(alpha=3.0).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(w, reference.coef_.T, atol=1e-5)
    np.testing.assert_allclose(b, reference.intercept_, atol=1e-5)


def test_every_class_gives_its_shots_or_all_it_has():
    labels = np.array([0] * 20 + [1] * 3 + [4] * 9)
    index = draw(np.random.default_rng(0), labels, 5)
    assert len(set(index)) == len(index)
    np.testing.assert_array_equal(np.bincount(labels[index]), [5, 3, 0, 0, 5])


def test_more_shots_are_better_and_the_seed_decides(objective, digits, params):
    result = few_shot(objective, digits, shots=(1, 25), seed=1)(params)
    assert 0.1 < result['eval/fewshot_1_top1'] < result['eval/fewshot_25_top1'] < 1
    assert result == few_shot(objective, digits, shots=(1, 25), seed=1)(params)
    assert (
        result['eval/fewshot_25_top1']
        == few_shot(objective, digits, shots=(25,), seed=1)(params)['eval/fewshot_25_top1']
    )
