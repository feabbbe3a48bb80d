import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.targets import features
from mim_jax.tokenizers.tokens import Tokens


@pytest.mark.parametrize('norm', [True, False])
def test_features_are_those_of_the_patches_normalised_each(norm):
    z = np.random.default_rng(0).normal(3.0, 2.0, (2, 7, 16)).astype(np.float32)
    tokens = Tokens(jnp.zeros((2, 5, 3)), jnp.zeros((2, 5, 2)), None, (2, 1, 5))
    found = features({}, tokens, lambda batch: jnp.asarray(z), norm=norm)
    exact = z[:, 2:].astype(np.float64)
    mean, variance = exact.mean(-1, keepdims=True), exact.var(-1, keepdims=True)
    np.testing.assert_allclose(found, (exact - mean) / np.sqrt(variance + 1e-5) if norm else exact, atol=1e-5)
