"""Latents as a reader takes them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mim_jax import augment
from mim_jax.data import LatentReader, Source
from mim_jax.data.image import Unreadable
from mim_jax.data.latents import save
from mim_jax.data.tokens import load
from mim_jax.errors import InputError

READER = LatentReader(canvas=(2, 3), channels=4)


def read(data):
    out = {key: np.zeros((1, *shape), dtype) for key, (shape, dtype) in READER.row.items()}
    assert READER(data, None, out) == ()
    return out


def test_a_record_goes_through_float16_and_is_normalised_by_channel():
    latents = np.random.default_rng(0).normal(3, 5, (2, 3, 4))
    found, mean, std = read(save(latents)), (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)
    assert load(save(latents)).dtype == np.float16 and found['image'].dtype == np.float32
    for train in (False, True):
        out = augment.latents(
            jax.random.key(0), found | dict(label=1), train=train, image_size=(2, 3), mean=mean, std=std
        )
        np.testing.assert_allclose(
            out['image'][0], (latents.astype(np.float16) - np.array(mean)) / std, rtol=1e-3, atol=1e-3
        )
        assert out['label'] == 1


@pytest.mark.parametrize(
    'data, why',
    [
        (np.zeros((2, 3)), r'float64 of shape \[2, 3\]; latents have to be floats of shape \[2, 3, 4\]'),
        (np.zeros((2, 3, 4), int), 'int64 of shape'),
        (np.full((2, 3, 4), np.nan), 'not all latents are finite'),
        (np.full((2, 3, 4), np.inf, np.float16), 'not all latents are finite'),
    ],
)
def test_a_record_of_another_kind_is_bad(data, why):
    with pytest.raises(Unreadable, match=why):
        read(data)


@pytest.mark.parametrize('value', [np.nan, 1e5])
def test_what_float16_does_not_hold_is_not_stored(value):
    with pytest.raises(Unreadable, match='not all latents are finite as float16'):
        save(np.full((2, 3, 4), value))


def test_shards_of_another_shape_are_refused():
    source = SimpleNamespace(path='LATENTS', tokens=dict(shape=[4, 4, 16]))
    with pytest.raises(
        InputError, match=r'data.canvas=\[2, 3, 4\], but the shards of LATENTS were made with \[4, 4, 16\]'
    ):
        READER.arrange(source)


def test_what_the_index_says_is_settled():
    told = dict(shape=[2, 3, 2], mean=[0.5, 1.0], std=[2.0, 3.0])
    found = LatentReader.settle({}, lambda: SimpleNamespace(tokens=told))
    assert found == dict(image_size=(2, 3), canvas=(2, 3), channels=2, mean=(0.5, 1.0), std=(2.0, 3.0))
    assert LatentReader.settle({}, Source) == {}
