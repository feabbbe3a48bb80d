import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import losses

ELEMENTWISE = {
    'mse': lambda e: e**2,
    'l1': np.abs,
    'smooth_l1': lambda e: np.where(np.abs(e) < 1, 0.5 * e**2, np.abs(e) - 0.5),
}


@pytest.mark.parametrize('name', ELEMENTWISE)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('jit', [False, True])
def test_equals_numpy(name, dtype, jit):
    rng = np.random.default_rng(0)
    prediction, goal = (jnp.array(rng.normal(size=(2, 5, 7)), dtype) for _ in range(2))
    weight = rng.integers(0, 3, (2, 5)).astype(np.float32)
    loss = getattr(losses, name)
    value = (jax.jit(loss) if jit else loss)(prediction, goal, jnp.array(weight))
    error = np.asarray(prediction, np.float64) - np.asarray(goal, np.float64)
    expected = (ELEMENTWISE[name](error).mean(-1) * weight).sum() / weight.sum()
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize('name', ELEMENTWISE)
def test_no_weight_is_no_loss_and_no_gradient(name):
    value, grad = jax.value_and_grad(getattr(losses, name))(
        jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3)), jnp.zeros((1, 2))
    )
    assert value == 0 and not grad.any()


def test_smooth_l1_equals_torch_at_another_beta():
    torch = pytest.importorskip('torch', reason='the parity with PyTorch needs the test extra')
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 4, 6)).astype(np.float32)
    expected = torch.nn.functional.smooth_l1_loss(torch.tensor(a), torch.tensor(b), beta=0.3)
    np.testing.assert_allclose(
        losses.smooth_l1(jnp.array(a), jnp.array(b), jnp.ones((1, 4)), beta=0.3), expected.item(), rtol=1e-6
    )
