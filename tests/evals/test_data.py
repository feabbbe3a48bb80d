"""Records that stand for all."""

import numpy as np

from mim_jax.evals.data import evenly


def test_some_records_are_spread_over_all():
    np.testing.assert_array_equal(evenly(10, 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(evenly(3, 8), [0, 1, 2])
    np.testing.assert_array_equal(evenly(9, 1), [0])
    labels = np.repeat(np.arange(1000), 50)  # a validation set in order of its classes
    assert len(set(labels[evenly(len(labels), 1000)])) > 950
