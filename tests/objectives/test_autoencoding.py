from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import losses
from mim_jax.models import FSQ, KL, VQ, ConvDecoder, ConvEncoder
from mim_jax.objectives import Autoencoding
from mim_jax.objectives.autoencoding import perplexity, psnr
from mim_jax.tokenizers import patches

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SHAPE = dict(widths=(8,), depth=1, patch=(4, 4))


def make(bottleneck, terms=((losses.mse, 1.0),)):
    objective = Autoencoding(
        tokenizer=partial(patches, patch=(4, 4)),
        encoder=ConvEncoder(**SHAPE),
        bottleneck=bottleneck,
        decoder=ConvDecoder(**SHAPE),
        losses=terms,
        mean=MEAN,
        std=STD,
    )
    image = np.random.default_rng(0).random((4, 8, 8, 3))
    batch = dict(image=jnp.asarray((image - MEAN) / STD, jnp.float32), valid=jnp.ones(4, bool))
    return objective, batch, jax.jit(objective.init)(jax.random.key(0), batch, jax.random.key(1))


BOTTLENECKS = dict(fsq=FSQ((5, 4)), vq=VQ(16, 4), kl=KL(3))


@pytest.fixture(params=BOTTLENECKS.values(), ids=BOTTLENECKS)
def method(request):
    return make(request.param)


def test_psnr_of_a_known_error():
    a = np.random.default_rng(0).random((3, 4, 4, 3)) * 0.5
    noise = np.array([0.1, 0.01, 0.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(a + noise)), [20, 40, 100], rtol=1e-4)


@pytest.mark.parametrize('counts, wanted', [([4, 4, 4, 4], 4), ([7, 0, 0], 1), ([3, 1], 4 / 3**0.75), ([0, 0], 1)])
def test_perplexity_counts_what_is_in_use(counts, wanted):
    np.testing.assert_allclose(perplexity(jnp.array(counts, jnp.float32)), wanted, rtol=1e-5)


def test_the_loss_is_the_sum_of_its_terms_in_normalised_pixels():
    objective, batch, params = make(FSQ((5, 4)), ((losses.mse, 1.0), (losses.l1, 0.5)))
    run = jax.jit(objective.apply, static_argnames='method')
    loss, aux = run(params, batch, jax.random.key(0))
    found = run(params, run(params, batch, method='codes'), method='decode')
    pixels = np.asarray(batch['image']) * STD + MEAN
    answer = run(params, batch, method=lambda m, b: m.decoder(m.bottleneck.lookup(m.codes(b))))
    error = np.asarray(answer - batch['image'])
    np.testing.assert_allclose(loss, (error**2).mean() + 0.5 * np.abs(error).mean(), rtol=1e-5)
    decibels = -10 * np.log10(((np.asarray(found) - pixels) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(aux['psnr'], decibels.mean(), rtol=1e-4)
    apart = np.asarray(batch['image'] - batch['image'].mean(0))
    np.testing.assert_allclose(aux['baseline'], (apart**2).mean() + 0.5 * np.abs(apart).mean(), rtol=1e-5)


def test_what_an_evaluator_asks_for(method):
    objective, batch, params = method
    run = jax.jit(objective.apply, static_argnames='method')
    z, ids = (run(params, batch, method=name) for name in ('encode', 'codes'))
    image = run(params, ids, method='decode')
    _, aux = run(params, batch, jax.random.key(0))
    assert z.shape == (4, 4, 8) and image.shape == (4, 8, 8, 3)
    assert 0 <= image.min() and image.max() <= 1
    assert objective.encoder.num_prefix == 0
    np.testing.assert_allclose(aux['features'], z.mean(1), rtol=1e-5)
    if not objective.bottleneck.size:
        assert ids.shape == (4, 2, 2, 3) and ids.dtype == jnp.float32 and 'codes' not in aux and aux['bottleneck'] > 0
        return
    assert (
        ids.shape == (4, 2, 2) and ids.dtype == jnp.int32 and 0 <= ids.min() and ids.max() < objective.bottleneck.size
    )
    share = np.bincount(np.asarray(ids).reshape(-1)) / ids.size
    np.testing.assert_allclose(aux['codes'], np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()), rtol=1e-5)


def test_latents_are_drawn_in_training_only():
    objective, batch, params = make(KL(3, weight=0.0))
    params['params']['to_code']['bias'] = params['params']['to_code']['bias'].at[3:].set(2.0)
    run = jax.jit(objective.apply, static_argnames='train')
    keys = jax.random.split(jax.random.key(0), 4), jax.random.split(jax.random.key(1), 4)
    drawn, plain = ([float(run(params, batch, key, train=train)[0]) for key in keys] for train in (True, False))
    assert drawn[0] != drawn[1] and plain[0] == plain[1]


def test_a_record_that_could_not_be_decoded_reaches_nothing(method):
    objective, batch, params = method
    batch['valid'] = jnp.arange(4) != 2

    @jax.jit
    def run(image):
        return jax.value_and_grad(lambda p: objective.apply(p, batch | {'image': image}, jax.random.key(0))[0])(params)

    a, b = run(batch['image']), run(batch['image'].at[2].set(7.0))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
