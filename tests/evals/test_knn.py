import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from mim_jax.evals import knn
from mim_jax.evals.knn import classify


def test_equals_scikit_learn_on_digits(digit_arrays):
    x, y = digit_arrays

    def weights(distance):
        return np.exp((1 - distance) / 0.07)

    reference = KNeighborsClassifier(20, metric='cosine', algorithm='brute', weights=weights).fit(x[:1000], y[:1000])
    guess = np.asarray(classify(x[1000:], x[:1000], y[:1000], num_classes=10))
    assert (
        guess == reference.predict(x[1000:])
    ).mean() > 0.998  # equal similarities may be cut differently at the k-th
    assert (guess == y[1000:]).mean() > 0.97


def test_the_vote_is_weighted_and_chunks_do_not_matter():
    rng = np.random.default_rng(0)
    bank, query, labels = rng.normal(size=(60, 5)), rng.normal(size=(23, 5)), rng.integers(0, 4, 60)
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    expected = []
    for q in query:
        similarity = unit @ q / np.linalg.norm(q)
        nearest = np.argsort(-similarity)[:7]
        votes = np.zeros(4)
        np.add.at(votes, labels[nearest], np.exp(similarity[nearest] / 0.1))
        expected.append(votes.argmax())
    args = query.astype(np.float32), bank.astype(np.float32), labels.astype(np.int32)
    for chunk in (1, 8, 64):
        np.testing.assert_array_equal(classify(*args, num_classes=4, k=7, temperature=0.1, chunk=chunk), expected)


def test_fewer_rows_than_k():
    bank = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(classify(bank, bank, np.array([2, 0, 1]), num_classes=3, k=200), [2, 0, 1])


def test_evaluator(objective, digits, params):
    result = knn(objective, digits, k=5)(params)
    assert result.keys() == {'eval/knn_top1'}
    assert 0.2 < result['eval/knn_top1'] < 1  # a random encoder is better than chance on digits
