from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import hiding, losses, masks, targets
from mim_jax.masks.mask import Mask
from mim_jax.models import SelfAttention, ViT
from mim_jax.objectives import MaskedPrediction, Term
from mim_jax.objectives.masked_prediction import asked
from mim_jax.tokenizers import patches
from tests import checks

PATCH = (2, 2)


def make(terms):
    decoder = partial(SelfAttention, width=16, depth=1, heads=2)
    return MaskedPrediction(
        tokenizer=partial(patches, patch=PATCH),
        mask=partial(masks.random, ratio=0.75),
        hide=hiding.drop,
        encoder=ViT(width=16, depth=1, heads=2),
        predictor={name: decoder() for name in terms},
        terms=terms,
    )


RAW = Term(targets.pixels, losses.mse, 'hidden', 1.0)


@pytest.fixture(scope='module')
def images():
    return {'image': jax.random.normal(jax.random.key(0), (2, 8, 8, 3))}


def start(objective, batch):
    return jax.jit(objective.init)(jax.random.key(1), batch, jax.random.key(2))


def test_loss_is_the_weighted_sum_of_its_terms(images):
    terms = dict(raw=RAW, normed=Term(partial(targets.pixels, norm=True), losses.l1, 'all', 0.5))
    objective = make(terms)
    params = start(objective, images)
    loss, aux = checks.applied(objective, params, images, jax.random.key(2))
    np.testing.assert_allclose(loss, aux['loss_raw'] + 0.5 * aux['loss_normed'], rtol=1e-6)
    assert aux['features'].shape == (2, 16)


def test_the_baseline_is_the_loss_of_the_mean(images):
    objective = make(dict(raw=RAW))
    params = start(objective, images)
    _, aux = checks.applied(objective, params, images, jax.random.key(2))
    goal = checks.applied(objective, params, images, jax.random.key(2), method='predict')['terms']['raw'][
        'goal'
    ].reshape(-1, 12)
    np.testing.assert_allclose(aux['baseline'], np.var(np.asarray(goal, np.float64), axis=0).mean(), rtol=1e-5)


@pytest.mark.parametrize(('on', 'count'), [('hidden', 12), ('visible', 4), ('all', 16)])
def test_terms_ask_for_what_they_say(images, on, count):
    objective = make(dict(raw=RAW._replace(on=on)))
    params = start(objective, images)
    out = checks.applied(objective, params, images, jax.random.key(2), method='predict')
    answer, hidden = out['terms']['raw'], np.asarray(out['mask'].hidden)
    assert answer['prediction'].shape == (2, count, 12)
    wanted = dict(hidden=hidden, visible=~hidden, all=np.ones_like(hidden))[on]
    np.testing.assert_array_equal(answer['asked'][1], np.flatnonzero(wanted[1]))
    np.testing.assert_array_equal(answer['goal'][1], np.asarray(out['tokens'].raw)[1][wanted[1]])


def test_an_unknown_choice_of_tokens_says_so(images):
    with pytest.raises(ValueError, match="'hiden'"):
        make(dict(raw=RAW._replace(on='hiden'))).init(jax.random.key(1), images, jax.random.key(2))


def test_a_given_mask_is_used_as_it_is(images):
    objective = make(dict(raw=RAW))
    params = start(objective, images)
    hidden = jnp.arange(16) % 4 != 0
    mask = Mask(jnp.stack([hidden] * 2), jnp.stack([jnp.flatnonzero(hidden)] * 2), jnp.ones((2, 12)), 4)
    out = checks.applied(objective, params, images, jax.random.key(2), mask=mask, method='predict')
    np.testing.assert_array_equal(out['mask'].hidden, mask.hidden)


def test_encode_sees_everything_and_nothing_random(images):
    objective = make(dict(raw=RAW))
    params = start(objective, images)
    features = checks.applied(objective, params, images, method='encode')
    assert features.shape == (2, 17, 16)
    alone = checks.applied(objective, params, jax.tree.map(lambda x: x[1:], images), method='encode')
    np.testing.assert_allclose(features[1:], alone, atol=1e-5)


def test_rows_of_no_sample_do_not_count(images):
    objective = make(dict(raw=RAW))
    params = start(objective, images)
    keys = jax.random.split(jax.random.key(3), 2)
    both = checks.applied(objective, params, images | {'valid': jnp.array([True, False])}, keys)[0]
    one = checks.applied(objective, params, jax.tree.map(lambda x: x[:1], images), keys[:1])[0]
    np.testing.assert_allclose(both, one, rtol=1e-6)


def test_what_fills_up_a_row_is_not_asked_for_as_visible():
    mask = masks.varying(jax.random.key(0), (4, 4, 4), low=0.5)
    index, weight, real = asked(mask, 'visible')
    np.testing.assert_array_equal(real, weight > 0)
    for row in range(4):
        np.testing.assert_array_equal(index[row][weight[row] > 0], np.flatnonzero(~mask.hidden[row]))
    assert weight.sum() == (~mask.hidden).sum() < weight.size


def test_features_of_a_row_are_the_mean_of_what_it_shows_and_of_nothing_0(images):
    objective = make(dict(raw=RAW))
    params = start(objective, images)
    hidden = jnp.ones((2, 16), bool).at[0, 2:4].set(False)
    mask = masks.asking(hidden).replace(most_visible=3)
    out = checks.applied(objective, params, images, jax.random.key(2), mask=mask, method='predict')
    _, aux = checks.applied(objective, params, images, jax.random.key(2), mask=mask)
    np.testing.assert_allclose(aux['features'][0], out['z'][0, 1:3].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(aux['features'][1], 0)
