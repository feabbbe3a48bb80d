"""Rows of ids as a reader takes them."""

import numpy as np
import pytest

from mim_jax.data import TokenReader
from mim_jax.data.image import Unreadable
from mim_jax.data.tokens import load, save
from mim_jax.errors import InputError


def read(reader, data):
    out = {key: np.zeros((1, *shape), dtype) for key, (shape, dtype) in reader.row.items()}
    assert reader(data, None, out) == ()
    return {key: value[0] for key, value in out.items()}


@pytest.mark.parametrize('packed', [False, True])
def test_codes_on_a_grid_lie_row_by_row(packed):
    codes = np.arange(12).reshape(3, 4) * 90
    found = read(TokenReader(shape=(3, 4), vocab=1024), save(codes) if packed else codes)
    assert found.keys() == {'ids'} and found['ids'].tolist() == [90 * i for i in range(12)]


def test_text_has_segments_and_bytes():
    rows = np.array([[65, 66, 67, 0], [1, 1, 2, 0], [1, 1, 2, 0]])
    reader = TokenReader(shape=(4,), vocab=256, tokenizer='bytes')
    found = read(reader, save(rows))
    assert (
        found['ids'].tolist() == [65, 66, 67, 0] and found['segment'].tolist() == [1, 1, 2, 0] and found['bytes'] == 4
    )
    assert reader.decode(found['ids'][:3]) == 'ABC' and reader.encode('AB').tolist() == [65, 66]


@pytest.mark.parametrize('most, kind', [(255, 'uint8'), (256, 'uint16'), (65536, 'uint32')])
def test_a_record_takes_the_smallest_type(most, kind):
    array = np.array([0, most])
    assert load(save(array)).dtype == kind and load(save(array)).tolist() == [0, most]


@pytest.mark.parametrize(
    'data, why',
    [
        (np.zeros((2, 6), int), r'shape \[2, 6\]; it has to be ids of shape \[3, 4\]'),
        (np.zeros((3, 4)), 'float64'),
        (np.full((3, 4), 16), 'ids from 16 to 16, but data.reader.vocab=16'),
        (np.full((3, 4), -1), 'ids from -1 to -1'),
    ],
)
def test_a_record_of_another_kind_is_bad(data, why):
    with pytest.raises(Unreadable, match=why):
        read(TokenReader(shape=(3, 4), vocab=16), data)


@pytest.mark.parametrize(
    'options, why',
    [
        (dict(), r'shape=\(\), vocab=0: every number has to be above 0'),
        (dict(shape=(0,), vocab=4), 'shape='),
        (dict(shape=(8,), vocab=4, tokenizer='bytes'), 'vocab=4, but data.reader.tokenizer=bytes has 256'),
    ],
)
def test_wrong_options_are_one_sentence(options, why):
    with pytest.raises(InputError, match=why):
        TokenReader(**options)


def test_codes_are_no_text():
    with pytest.raises(InputError, match='these ids are codes'):
        TokenReader(shape=(4,), vocab=16).decode(np.zeros(4, int))
