import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mim_jax.losses import nll


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('jit', [False, True])
def test_equals_optax(smoothing, dtype, jit):
    logits = (3 * jax.random.normal(jax.random.key(0), (4, 5, 7))).astype(dtype)
    ids = jax.random.randint(jax.random.key(1), (4, 5), 0, 7)
    loss = lambda logits: nll(logits, ids, smoothing)  # noqa: E731
    target = optax.smooth_labels(jax.nn.one_hot(ids, 7), smoothing)
    theirs = lambda logits: optax.softmax_cross_entropy(logits.astype(jnp.float32), target)  # noqa: E731
    found = (jax.jit(loss) if jit else loss)(logits)
    np.testing.assert_allclose(found, theirs(logits), rtol=1e-5)
    ours, other = (jax.grad(lambda x, f=f: f(x).sum())(logits) for f in (loss, theirs))
    np.testing.assert_allclose(
        ours.astype(jnp.float32), other.astype(jnp.float32), atol=1e-6 if dtype == 'float32' else 4e-3
    )
