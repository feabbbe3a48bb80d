"""The bound of a model that knows its data is their entropy; of any other it is above."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import noise
from mim_jax.errors import InputError
from mim_jax.evals import bits_per_dim

MEAN, STD, SIDE = (0.5,), (0.25,), 4  # one for both channels
SHARES = {'even': np.full(256, 1 / 256), 'black and white': np.eye(256)[0] * 0.25 + np.eye(256)[255] * 0.75,
          'rising': np.arange(256) / np.arange(256).sum()}  # fmt: skip


def images(share, rows=1000):
    return np.random.default_rng(0).choice(256, (rows, SIDE, SIDE, 2), p=share).astype(np.uint8)


def data_of(share, std=STD, **more):
    def val(batch_size, reader=()):
        whole = images(share)
        for i in range(0, len(whole), batch_size):
            yield dict(image=whole[i : i + batch_size], valid=np.arange(len(whole[i : i + batch_size])) != 1)

    def augment(key, batch, *, train):
        return batch | dict(image=(batch['image'] / 255.0 - MEAN[0]) / std[0])

    return SimpleNamespace(
        mean=MEAN, std=std, image_size=(SIDE, SIDE), val=val, augment=augment, **(dict(decode=None) | more)
    )


def knowing(share, schedule, std=STD):
    """The expected clean value and noise of each pixel by itself."""
    values, logs = (np.arange(256) / 255 - MEAN[0]) / std[0], np.log(np.maximum(share, 1e-30))

    def apply(variables, x, t, label, method):
        assert method == 'denoise' and label is None
        alpha, sigma = (z.reshape(-1, 1, 1, 1, 1) for z in schedule.level(t))
        p = jax.nn.softmax(logs - ((x[..., None] - alpha * values) / sigma) ** 2 / 2, -1)
        clean = (p * values).sum(-1)
        return clean, (x - alpha[..., 0] * clean) / sigma[..., 0]

    return SimpleNamespace(schedule=schedule, field='image', apply=apply)


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'karras'])
@pytest.mark.parametrize('name', SHARES)
def test_who_knows_the_data_pays_their_entropy(name, schedule):
    share = SHARES[name]
    found = bits_per_dim(knowing(share, getattr(noise, schedule)()), data_of(share), draws=32, batch_size=100)({})
    whole = images(share)
    counted = np.arange(len(whole)) % 100 != 1
    entropy = -np.log2(share[whole[counted]]).mean()  # of these very images
    error = found['eval/bits_per_dim_error']
    assert 0 < error < 0.06
    assert abs(found['eval/bits_per_dim'] - entropy) < 0.06  # levels are spread evenly: the error is an upper estimate


@pytest.mark.parametrize(('std', 'schedule', 'low'), [
    ((4.0,), noise.karras(), 0.3),  # pixels so close to one another that they are told apart at the end only: 8 bits of reading off
    (STD, noise.karras(high=1.0), 0.3),  # noise that does not hide the image at time 1
], ids=['reading', 'end'])  # fmt: skip
def test_each_part_counts(std, schedule, low):
    """Still the entropy or, where the law that is assumed at time 1 is not that of the data, above it; less without the part."""
    share = SHARES['even']
    found = bits_per_dim(knowing(share, schedule, std), data_of(share, std), draws=16, batch_size=100)({})[
        'eval/bits_per_dim'
    ]
    assert 8 - 0.06 < found < 8 + low
    values = (images(share) / 255 - MEAN[0]) / std[0]
    alpha, sigma = schedule.level(jnp.ones(()))
    end = float(
        np.mean((sigma**2 + (alpha * values) ** 2) / (alpha**2 + sigma**2) - 1 + np.log(1 + (alpha / sigma) ** 2))
        / 2
        / np.log(2)
    )
    gap = 1 / 255 / std[0] / (math.exp(-13.3 / 2))  # levels apart, in deviations of the noise they are read off with
    assert (gap < 1) == (std != STD) and (end > 0.05) == (std == STD)


def test_who_does_not_pays_more():
    knows = knowing(SHARES['even'], noise.cosine())
    found = bits_per_dim(knows, data_of(SHARES['black and white']), draws=8, batch_size=100)({})
    assert found['eval/bits_per_dim'] == pytest.approx(8, abs=0.1)  # -log2(1 / 256) of either


def test_latents_are_refused():
    with pytest.raises(InputError, match='bits_per_dim is of pixels, but the data are latents'):
        bits_per_dim(knowing(SHARES['even'], noise.cosine()), data_of(SHARES['even'], decode=jnp.asarray))


def test_a_schedule_without_end_is_refused():
    with pytest.raises(InputError, match='ends in noise alone'):
        bits_per_dim(knowing(SHARES['even'], noise.flow()), data_of(SHARES['even']))
