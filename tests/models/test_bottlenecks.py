import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import InputError
from mim_jax.models import FSQ, KL, VQ

LEVELS = [(8, 5, 5, 5), (2, 3), (7, 5, 5, 5, 5), (8, 6, 5)]


def published(z, levels):
    """The bounding of the paper's appendix, and the rounding to numbers in [-1, 1]."""
    levels = np.array(levels)
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = np.where(levels % 2 == 1, 0, 0.5)
    bounded = np.tanh(z + np.tan(offset / half)) * half - offset
    return bounded, np.round(bounded) / (levels // 2)


def every_code(levels):
    """f32[K, d]: whole numbers around 0, the first changing fastest."""
    ranges = [np.arange(n) - n // 2 for n in reversed(levels)]
    return np.stack(np.meshgrid(*ranges, indexing='ij'), -1).reshape(-1, len(levels))[:, ::-1]


@pytest.mark.parametrize('levels', LEVELS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_fsq_is_the_formula_of_the_paper(levels, dtype):
    z = jnp.asarray(4 * np.random.default_rng(0).standard_normal((2, 8, 8, len(levels))), dtype)
    _, wanted = published(np.asarray(z, np.float64), levels)
    for f in (FSQ(levels), jax.jit(FSQ(levels))):
        quantised, ids, loss = f(z)
        np.testing.assert_allclose(quantised, wanted, atol=1e-6)
        assert quantised.dtype == jnp.float32 and ids.dtype == jnp.int32 and ids.shape == z.shape[:-1] and loss == 0


@pytest.mark.parametrize('levels', LEVELS)
def test_fsq_reaches_every_level_and_no_more(levels):
    z = jnp.linspace(-9, 9, 999)[:, None] * jnp.ones(len(levels))
    quantised, ids, _ = FSQ(levels)(z)
    assert [len(np.unique(column)) for column in np.asarray(quantised).T] == list(levels)
    assert ids.min() == 0 and ids.max() == FSQ(levels).size - 1
    assert quantised.min() == -1 and quantised.max() <= 1


@pytest.mark.parametrize('levels', LEVELS)
def test_fsq_numbers_its_codes_one_to_one(levels):
    fsq, half = FSQ(levels), np.array(levels) // 2
    codes = fsq.lookup(jnp.arange(fsq.size))
    np.testing.assert_array_equal(codes, (every_code(levels) / half).astype(np.float32))
    np.testing.assert_array_equal(fsq.ids(codes), np.arange(fsq.size))
    assert fsq.width == len(levels) and fsq.size == np.prod(levels)


def test_the_gradient_of_fsq_is_that_of_its_bound():
    fsq, z = FSQ((8, 5)), jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    cotangent = jax.random.normal(jax.random.key(1), z.shape)
    through = jax.grad(lambda z: (fsq(z)[0] * cotangent).sum())(z)
    smooth = jax.grad(lambda z: (fsq.bound(z) / jnp.array([4, 2]) * cotangent).sum())(z)
    np.testing.assert_allclose(through, smooth, rtol=1e-6)


def test_a_level_of_one_is_refused():
    with pytest.raises(InputError, match='each has to be at least 2'):
        FSQ((8, 1))(jnp.zeros((1, 1, 1, 2)))


@pytest.fixture(params=[True, False], ids=['sphere', 'plain'])
def vq(request):
    model = VQ(size=32, width=4, normalise=request.param, commitment=0.3)
    z = 2 * jax.random.normal(jax.random.key(0), (3, 5, 5, 4))
    return model, model.init(jax.random.key(1), z), z


def on_the_sphere(x, normalise):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True) if normalise else x


def test_vq_finds_the_nearest_code(vq):
    model, params, z = vq
    quantised, ids, _ = jax.jit(model.apply)(params, z)
    codes = on_the_sphere(params['params']['codebook'], model.normalise)
    far = np.square(on_the_sphere(z, model.normalise)[..., None, :] - codes).sum(-1)
    np.testing.assert_array_equal(ids, far.argmin(-1))
    np.testing.assert_allclose(quantised, codes[ids], atol=1e-6)
    np.testing.assert_allclose(model.apply(params, ids, method='lookup'), codes[ids], atol=1e-6)


def test_each_loss_of_vq_moves_its_own_side():
    """The codes go towards z, and z towards the codes with the weight of the commitment."""
    model, z = VQ(size=16, width=4, normalise=False, commitment=0.3), jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    params = model.init(jax.random.key(1), z)
    of_codes, of_z = jax.grad(lambda p, z: model.apply(p, z)[2], (0, 1))(params, z)
    codes = np.asarray(params['params']['codebook'])
    ids = np.asarray(model.apply(params, z)[1])
    apart = 2 * (np.asarray(z) - codes[ids]) / z.size
    np.testing.assert_allclose(of_z, 0.3 * apart, rtol=1e-4, atol=1e-7)
    wanted = np.zeros_like(codes)
    np.add.at(wanted, ids.reshape(-1), -apart.reshape(-1, 4))
    np.testing.assert_allclose(of_codes['params']['codebook'], wanted, rtol=1e-4, atol=1e-7)


def test_what_is_after_vq_moves_z_and_no_code(vq):
    model, params, z = vq
    cotangent = jax.random.normal(jax.random.key(2), z.shape)
    of_codes, of_z = jax.grad(lambda p, z: (model.apply(p, z)[0] * cotangent).sum(), (0, 1))(params, z)
    wanted = jax.grad(lambda z: (model.apply(params, z, method='place') * cotangent).sum())(z)
    np.testing.assert_allclose(of_z, wanted, rtol=1e-5, atol=1e-6)
    assert not np.asarray(of_codes['params']['codebook']).any()


def said(shape=(3, 5, 4, 6)):
    """z of three means and three log-variances, some of them out of what is allowed, and both in f64."""
    z = np.random.default_rng(0).normal(0, 2, shape)
    z[0, 0, 0, 3:], z[0, 0, 1, 3:] = -40, 21
    mean, log_variance = np.split(z.astype(np.float32).astype(np.float64), 2, -1)
    return jnp.asarray(z, jnp.float32), mean, np.clip(log_variance, -30, 20)


def test_the_loss_of_kl_is_the_divergence_of_each_image():
    z, mean, log_variance = said()
    weight = np.array([1.0, 0.0, 2.0])
    ratio = np.exp(log_variance) / 1.0
    each = 0.5 * (ratio + mean**2 - 1 - np.log(ratio)).sum((1, 2, 3))
    latents, codes, loss = jax.jit(KL(channels=3, weight=0.25))(z, jnp.asarray(weight, jnp.float32))
    np.testing.assert_allclose(loss, 0.25 * (each @ weight) / 3, rtol=1e-5)
    np.testing.assert_allclose(KL(channels=3, weight=0.25)(z)[2], 0.25 * each.mean(), rtol=1e-5)
    np.testing.assert_array_equal(latents, mean.astype(np.float32))
    np.testing.assert_array_equal(KL(3).lookup(codes), latents)


def test_the_divergence_is_that_of_samples():
    mean, log_variance = np.split(np.asarray([[[[0.3, -1.0, 2.0, 0.5, -1.0, 0.2]]]]), 2, -1)
    z, std = jnp.asarray(np.concatenate([mean, log_variance], -1), jnp.float32), np.exp(log_variance / 2)
    x = mean + std * np.random.default_rng(0).standard_normal((400_000, 3))
    log_ratio = -0.5 * ((x - mean) / std) ** 2 - np.log(std) + 0.5 * x**2
    np.testing.assert_allclose(KL(3, weight=1.0)(z)[2], log_ratio.sum(-1).mean(), rtol=1e-2)


def test_kl_draws_by_its_mean_and_variance_and_each_row_by_its_key():
    mean, log_variance = jnp.array([0.5, -2.0]), jnp.array([-1.0, 1.5])
    z = jnp.broadcast_to(jnp.concatenate([mean, log_variance]), (2, 200, 200, 4))
    keys = jax.random.split(jax.random.key(0), 2)
    drawn, codes, _ = jax.jit(KL(channels=2))(z, key=keys)
    np.testing.assert_allclose(drawn.mean((0, 1, 2)), mean, atol=0.04)
    np.testing.assert_allclose(drawn.std((0, 1, 2)), np.exp(log_variance / 2), rtol=0.02)
    np.testing.assert_array_equal(codes, jnp.broadcast_to(mean, codes.shape))
    np.testing.assert_allclose(KL(channels=2)(z[1:], key=keys[1:])[0], drawn[1:], atol=1e-5)


@pytest.mark.parametrize(
    'build', [lambda: FSQ((8, 5, 5, 5)), lambda: VQ(size=16, width=4), lambda: KL(channels=2, weight=1.0)]
)
def test_rows_of_no_weight_reach_no_loss(build):
    model, z = build(), jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    assert isinstance(model, nn.Module)
    params = model.init(jax.random.key(1), z)
    loss = model.apply(params, z, jnp.array([1.0, 1.0, 0.0]))[2]
    np.testing.assert_allclose(loss, model.apply(params, z[:2])[2], rtol=1e-6)
    assert model.width == z.shape[-1]
