"""Samplers against laws found by enumeration, at a million draws."""

import itertools
from collections import defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from mim_jax.masks import schedule
from mim_jax.samplers import ancestral, confidence, first_hitting, remasking, token
from tests.samplers.enumeration import ALL, JOINT, STATES, N, V, conditionals, law, network

DRAWS = 1_000_000
TABLE = conditionals()
LOGITS = network(TABLE)
HIDDEN = jnp.ones((DRAWS, N), bool)
BLANK = jnp.zeros((DRAWS, N), jnp.int32)


def counts(sampler, hidden=HIDDEN, ids=BLANK, logits=LOGITS, **options):
    out = jax.jit(partial(sampler, logits_fn=logits, **options))(jax.random.key(1), ids=ids, hidden=hidden)
    return np.bincount(np.asarray(out) @ V ** np.arange(N - 1, -1, -1), minlength=len(ALL)), np.asarray(out)


def agree(observed, p):
    """p-value of a chi-square test; values of no probability must not come."""
    assert not observed[p < 1e-12].any()
    seen = p >= 1e-12
    return stats.chisquare(observed[seen], p[seen] / p[seen].sum() * observed.sum()).pvalue


def steps_of(share, steps, again=lambda before, after, i: 0.0):
    """The chain of `ancestral` (again = 0) and of `remasking`."""

    def transition(i, s, table):
        before, after = share(1 - i / steps), share(1 - (i + 1) / steps) if i + 1 < steps else 0.0
        r = again(before, after, i)
        stay = (after - r * (1 - before)) / before
        rows = []
        for n, value in enumerate(STATES[s]):
            if value == V:
                rows.append({V: stay} | {v: (1 - stay) * table[s, n, v] for v in range(V)})
            else:
                rows.append({value: 1 - r, V: r})
        return [{v: c for v, c in row.items() if c > 0} for row in rows]

    return transition


@pytest.mark.parametrize('name', ['linear', 'cosine'])
@pytest.mark.parametrize('steps', [1, 3, 8])
def test_ancestral_has_the_law_of_its_chain(name, steps):
    share = schedule(name).share
    expected = law(TABLE, steps, steps_of(lambda t: float(share(jnp.float32(t))), steps))
    observed, _ = counts(ancestral, steps=steps, share=share)
    assert agree(observed, expected) > 1e-3
    if steps == 1:
        assert agree(observed, JOINT) < 1e-6  # tokens of one step are independent: the test can fail


def test_first_hitting_has_the_law_of_the_data():
    assert agree(counts(first_hitting)[0], JOINT) > 1e-3


@pytest.mark.parametrize('block', [1, 2])
def test_first_hitting_in_blocks_has_the_law_of_the_data(block):
    assert agree(counts(first_hitting, block=block)[0], JOINT) > 1e-3


@pytest.mark.parametrize('method', ['inverse', 'gumbel'])
def test_both_ways_to_draw_are_exact(method):
    assert agree(counts(first_hitting, draw=partial(token, method=method))[0], JOINT) > 1e-3


@pytest.mark.parametrize(('rule', 'eta'), [('cap', 0.2), ('rescale', 0.5), ('rescale', 0.0)])
def test_remasking_has_the_law_of_its_chain(rule, eta):
    def again(before, after, i):
        most = min(1.0, after / max(1 - before, 1e-6))
        return min(eta, most) if rule == 'cap' else eta * most

    expected = law(TABLE, 5, steps_of(lambda t: t, 5, again))
    observed, _ = counts(remasking, steps=5, rule=rule, eta=eta)
    assert agree(observed, expected) > 1e-3
    if not eta:
        assert agree(observed, law(TABLE, 5, steps_of(lambda t: t, 5))) > 1e-3


def doubting(steps, doubt_of):
    """f64[27]: the law of `remasking` by confidence, whose states are tokens and the probability each had when it was drawn."""
    states = {((V,) * N, (1.0,) * N): 1.0}
    for i in range(steps):
        before, after = 1 - i / steps, 1 - (i + 1) / steps
        most, found = min(1.0, after / max(1 - before, 1e-6)), defaultdict(float)
        for (values, chances), mass in states.items():
            table = TABLE[np.flatnonzero((STATES == values).all(1))[0]]
            doubt = np.array([0.0 if v == V else doubt_of(c) for v, c in zip(values, chances, strict=True)])
            again, choices = most * doubt / max(doubt.sum(), 1e-6), []
            for n, (value, chance) in enumerate(zip(values, chances, strict=True)):
                if value == V:
                    shown = [(v, table[n, v], (1 - after / before) * table[n, v]) for v in range(V)]
                    choices.append([(V, 1.0, after / before), *shown])
                else:
                    choices.append([(value, chance, 1 - again[n]), (V, 1.0, again[n])])
            for each in itertools.product(*choices):
                values_, chances_, parts = zip(*each, strict=True)
                if np.prod(parts) > 0:
                    found[values_, chances_] += mass * np.prod(parts)
        states = found
    p = np.zeros(len(ALL))
    for (values, _), mass in states.items():
        p[values @ V ** np.arange(N - 1, -1, -1)] += mass
    return p


def test_remasking_by_confidence_has_the_law_of_its_chain():
    observed, _ = counts(remasking, steps=4, rule='confidence')
    assert agree(observed, doubting(4, lambda chance: np.exp(-chance))) > 1e-3
    for other in (lambda chance: 1.0, np.exp):  # all alike, or the surest ones: the test can fail
        assert agree(observed, doubting(4, other)) < 1e-3


def test_many_steps_come_close_to_the_law_of_the_data():
    def distance(steps):
        observed, _ = counts(ancestral, HIDDEN[:200_000], BLANK[:200_000], steps=steps)
        return np.abs(observed / observed.sum() - JOINT).sum() / 2

    far, near = distance(2), distance(200)
    assert near < 0.005 < far


@pytest.mark.parametrize('block', [0, 2])
def test_cached_tokens_are_the_uncached_ones(block):
    few = dict(hidden=HIDDEN[:20_000], ids=BLANK[:20_000])
    run = partial(counts, ancestral, steps=20, block=block, **few)
    np.testing.assert_array_equal(run(cached=True)[1], run(cached=False)[1])


def test_the_cache_asks_less():
    """200 steps for three tokens: the network is asked three times at most."""
    asked = []

    def logits_fn(ids, hidden, level):
        jax.debug.callback(lambda: asked.append(1))
        return LOGITS(ids, hidden, level)

    for cached in (True, False):
        asked.clear()
        out = jax.jit(partial(ancestral, logits_fn=logits_fn, steps=200, cached=cached))(
            jax.random.key(0), ids=BLANK[:4], hidden=HIDDEN[:4]
        )
        out.block_until_ready()
        jax.effects_barrier()
        assert len(asked) <= N if cached else len(asked) == 200


SAMPLERS = dict(
    ancestral=partial(ancestral, steps=6),
    blocks=partial(ancestral, steps=3, block=2),
    first_hitting=first_hitting,
    confidence=partial(confidence, steps=4, noise=1.0),
    confidence_blocks=partial(confidence, steps=2, block=2),
    running=partial(confidence, steps=4, remask=True),
    cap=partial(remasking, steps=6, rule='cap', eta=0.1),
    rescale=partial(remasking, steps=6),
    conf=partial(remasking, steps=6, rule='confidence'),
)


@pytest.mark.parametrize('name', SAMPLERS)
def test_fixed_tokens_stay_and_all_others_are_drawn(name):
    """A network that is certain of 2 everywhere, around a fixed 1."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.random((64, 9)) < 0.6)
    ids = jnp.ones(hidden.shape, jnp.int32)

    def certain(ids, hidden, level):
        return jnp.broadcast_to(jnp.array([-jnp.inf, -jnp.inf, 0.0]), (*ids.shape, 3))

    out = jax.jit(partial(SAMPLERS[name], logits_fn=certain))(jax.random.key(0), ids=ids, hidden=hidden)
    np.testing.assert_array_equal(out, jnp.where(hidden, 2, 1))


@pytest.mark.parametrize('name', ['first_hitting', 'ancestral', 'rescale'])
def test_infilling_follows_the_conditional(name):
    sampler = dict(first_hitting=first_hitting, ancestral=partial(ancestral, steps=400),
                   rescale=partial(remasking, steps=100, eta=0.0))[name]  # fmt: skip
    hidden, ids = HIDDEN[:50_000].at[:, 1].set(False), BLANK[:50_000].at[:, 1].set(2)
    observed, _ = counts(sampler, hidden, ids)
    expected = JOINT * (ALL[:, 1] == 2)
    expected = expected / expected.sum()
    assert np.abs(observed / observed.sum() - expected).sum() / 2 < 0.012
    if name == 'first_hitting':
        assert agree(observed, expected) > 1e-3


def test_confidence_reveals_by_the_schedule_and_the_likeliest_first():
    """Row-constant answers of falling certainty: the order of reveals is left to right, the counts are MaskGIT's."""
    n, steps = 16, 5
    sharp = jnp.linspace(5, 1, n)
    seen = []

    def logits_fn(ids, hidden, level):
        jax.debug.callback(lambda h: seen.append(np.asarray(h[0])), hidden, ordered=True)
        return jnp.stack([sharp, -sharp], -1)[None] * jnp.ones((2, 1, 1))

    share = schedule('cosine').share
    run = partial(confidence, logits_fn=logits_fn, steps=steps, share=share, draw=partial(token, temperature=0))
    out = jax.jit(run)(jax.random.key(0), ids=jnp.zeros((2, n), jnp.int32), hidden=jnp.ones((2, n), bool))
    out.block_until_ready()
    jax.effects_barrier()
    left = [n] + [int(np.floor(n * np.cos(np.pi / 2 * (i + 1) / steps))) for i in range(steps - 1)]
    for hidden, count in zip(seen, left, strict=True):
        np.testing.assert_array_equal(hidden, np.arange(n) >= n - count)


def test_the_noise_of_confidence_falls_to_0_in_the_last_step():
    """Beside MaskGIT's loop in NumPy, with the same draws: noise * (1 - (i + 1) / steps) in step i."""
    rows, n, size, steps, noise = 200, 8, 5, 4, 3.0
    rng = np.random.default_rng(0)
    bias, of_others = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((n, size), (size, n, size)))
    key, share = jax.random.key(7), schedule('cosine').share

    @jax.jit
    def logits_fn(ids, hidden, level):
        shown = jnp.where(hidden[..., None], 0.0, jax.nn.one_hot(ids, size))
        return 2 * bias + jnp.einsum('bnv,vmw->bmw', shown, of_others)

    def loop(falls):
        ids, hidden = np.zeros((rows, n), np.int32), np.ones((rows, n), bool)
        for i in range(steps):
            k1, k2 = jax.random.split(jax.random.fold_in(key, i))
            logits = logits_fn(ids, hidden, None)
            drawn, p = np.asarray(token(k1, logits)), special.softmax(np.float64(logits), -1)
            score = np.log(np.take_along_axis(p, drawn[..., None], -1)[..., 0])
            score += noise * (1 - (i + 1) / steps if falls else 1) * np.float64(jax.random.gumbel(k2, score.shape))
            ids = np.where(hidden, drawn, ids)
            left = int(np.floor(n * np.cos(np.pi / 2 * (i + 1) / steps))) if i + 1 < steps else 0
            for row in range(rows):
                asked = np.flatnonzero(hidden[row])
                hidden[row] = False
                hidden[row, asked[np.argsort(score[row, asked])[:left]]] = True
        return ids

    run = jax.jit(partial(confidence, logits_fn=logits_fn, steps=steps, share=share, noise=noise))
    out = np.asarray(run(key, ids=jnp.zeros((rows, n), jnp.int32), hidden=jnp.ones((rows, n), bool)))
    np.testing.assert_array_equal(out, loop(falls=True))
    assert (out != loop(falls=False)).any(1).mean() > 0.2


def test_running_confidence_hides_what_it_was_least_sure_of():
    """The second answer is surer of token 0 than the first was of tokens 1 and 2, one of which goes back."""
    first, second = jnp.array([0.5, 2.0, 1.0, 0.1]), jnp.array([3.0, 2.0, 1.0, 2.5])
    seen = []

    def logits_fn(ids, hidden, level):
        jax.debug.callback(lambda h: seen.append(np.asarray(h[0])), hidden, ordered=True)
        sharp = jnp.where(hidden.all(-1, keepdims=True), first, second)
        return jnp.stack([sharp, -sharp], -1)

    run = partial(confidence, logits_fn=logits_fn, steps=4, draw=partial(token, temperature=0))
    start = dict(ids=jnp.zeros((1, 4), jnp.int32), hidden=jnp.ones((1, 4), bool))
    for remask, third in ((True, [False, True, True, False]), (False, None)):
        seen.clear()
        jax.jit(partial(run, remask=remask))(jax.random.key(0), **start).block_until_ready()
        jax.effects_barrier()
        np.testing.assert_array_equal(seen[1], [True, False, True, True])  # 3 of 4 left
        np.testing.assert_array_equal(seen[2], third if remask else [False, False, True, True])


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="'often' is not one of cap"):
        remasking(jax.random.key(0), LOGITS, BLANK[:1], HIDDEN[:1], steps=2, rule='often')
