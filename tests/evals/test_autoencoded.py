from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from mim_jax import losses
from mim_jax.evals import autoencoded, psnr
from mim_jax.models import FSQ, KL, ConvDecoder, ConvEncoder
from mim_jax.objectives import Autoencoding
from mim_jax.tokenizers import patches

PATCH = (2, 2)


@pytest.fixture(scope='module')
def method(digits, make_params):
    shape = dict(widths=(8,), depth=0, patch=PATCH)
    objective = Autoencoding(
        tokenizer=partial(patches, patch=PATCH),
        encoder=ConvEncoder(**shape),
        bottleneck=FSQ((3, 2)),
        decoder=ConvDecoder(**shape, channels=1),
        losses=((losses.mse, 1.0),),
        mean=digits.mean,
        std=digits.std,
    )
    return objective, make_params(objective, digits)


@pytest.fixture(scope='module')
def latents(method, digits, make_params):
    objective = method[0].clone(bottleneck=KL(2))
    return objective, make_params(objective, digits)


def by_hand(method, digits):
    """Codes and decibels of every validation image, one by one."""
    objective, params = method
    apply = jax.jit(partial(objective.apply, {'params': params}), static_argnames='method')
    rows = next(digits.val(1000))
    batch = digits.augment(jax.random.key(0), rows, train=False)
    ids = apply(batch, method='codes')
    error = np.square(np.asarray(apply(ids, method='decode'), np.float64) - rows['image'] / 255).mean((1, 2, 3))
    return np.asarray(ids), -10 * np.log10(error)


def test_psnr_and_use_of_the_codes_over_all_images(method, digits):
    ids, decibels = by_hand(method, digits)
    share = np.bincount(ids.reshape(-1), minlength=6) / ids.size
    found = psnr(method[0], digits, batch_size=300)(method[1])
    np.testing.assert_allclose(found['eval/psnr'], decibels.mean(), rtol=1e-5)
    assert found['eval/codebook_use'] == (share > 0).mean()
    wanted = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
    np.testing.assert_allclose(found['eval/code_perplexity'], wanted, rtol=1e-5)


def test_latents_have_decibels_alone(latents, digits):
    found = psnr(latents[0], digits, batch_size=300)(latents[1])
    assert found.keys() == {'eval/psnr'}
    np.testing.assert_allclose(found['eval/psnr'], by_hand(latents, digits)[1].mean(), rtol=1e-5)
    assert autoencoded(latents[0], digits, rows=3)(latents[1])['reconstruction'].dtype == np.uint8


def test_the_picture_shows_inputs_as_they_are(method, digits):
    picture = autoencoded(*method[:1], digits, rows=3)(method[1])['reconstruction']
    assert picture.dtype == np.uint8 and picture.shape[-1] == 3
    first = Image.fromarray(next(digits.val(1))['image'][0, ..., 0]).resize((144, 144), Image.Resampling.NEAREST)
    windows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], (144, 144))[:80, 16]
    assert any((window == np.asarray(first)).all() for window in windows)
