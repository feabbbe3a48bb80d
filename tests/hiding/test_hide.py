import jax
import jax.numpy as jnp
import numpy as np

from mim_jax import hiding, masks
from mim_jax.tokenizers import ids, patches


def setup(size=None):
    batch = {'image': jax.random.normal(jax.random.key(0), (2, 8, 8, 3))}
    if size is not None:
        batch['size'] = jnp.array(size)
    tokens = patches(batch, patch=(2, 2))
    return tokens, masks.random(jax.random.key(1), tokens.grid, ratio=0.75)


def test_drop_gives_the_visible_tokens():
    tokens, mask = setup()
    raw, pos, valid, hidden = hiding.drop(tokens, mask, jax.random.key(2))
    assert raw.shape == (2, 4, 12) and valid is None and hidden is None
    for row in range(2):
        np.testing.assert_array_equal(raw[row], tokens.raw[row][~mask.hidden[row]])
        np.testing.assert_array_equal(pos[row], tokens.pos[row][~mask.hidden[row]])


def test_drop_carries_validity():
    tokens, mask = setup([[8, 8], [4, 4]])
    valid = hiding.drop(tokens, mask, jax.random.key(2))[2]
    np.testing.assert_array_equal(valid[1], np.asarray(tokens.valid[1])[~np.asarray(mask.hidden[1])])


def test_mask_token_leaves_nothing_of_what_is_hidden():
    tokens, mask = setup()
    raw, pos, valid, hidden = hiding.mask_token(tokens, mask, jax.random.key(2))
    np.testing.assert_array_equal(raw[mask.hidden], 0)
    np.testing.assert_array_equal(raw[~mask.hidden], tokens.raw[~mask.hidden])
    assert raw.shape == tokens.raw.shape and hidden is mask.hidden and pos is tokens.pos and valid is None


def test_bert_covers_most_replaces_some_and_keeps_some_of_what_is_asked():
    batch = dict(ids=jnp.full((400, 50), 7))
    tokens = ids(batch)
    mask = masks.random(jax.random.key(1), tokens.grid, ratio=0.5)
    raw, _, _, covered = hiding.bert(tokens, mask, jax.random.key(2), vocab=40)
    raw, asked = raw[..., 0], mask.hidden
    np.testing.assert_array_equal(raw[~asked], 7)
    assert not covered[~asked].any() and (raw[covered] == 0).all()
    shown = raw[asked & ~covered]
    assert abs(covered[asked].mean() - 0.8) < 0.02
    assert abs((shown == 7).mean() - (1 + 1 / 40) / 2) < 0.03 and shown.min() == 0 and shown.max() == 39


def test_drop_fills_up_rows_that_are_shorter():
    tokens, _ = setup()
    mask = masks.varying(jax.random.key(5), tokens.grid, low=0.5)
    raw, _, valid, _ = jax.jit(lambda key: hiding.drop(tokens, mask, key))(jax.random.key(2))
    assert raw.shape == (2, 8, 12) and valid.sum() == (~mask.hidden).sum()
    for row in range(2):
        np.testing.assert_array_equal(raw[row][valid[row]], tokens.raw[row][~mask.hidden[row]])
