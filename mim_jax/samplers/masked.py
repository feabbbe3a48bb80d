"""From hidden tokens to all tokens, with a network that answers the distribution of every hidden one.

A sampler is `(key, logits_fn, ids, hidden, **options) -> ids`: ids i32[B, N], of which those where hidden bool[B, N] is True
do not count and are drawn; the others are never changed, so a prompt or the frame of a hole is just what is not hidden.
`logits_fn(ids, hidden, level f32[B]) -> f32[B, N, V]` is the network, level the share of tokens a diffusion expects to be hidden.
`draw(key, logits) -> i32[B, N]` is `draw.token` with options, `share(t)` a schedule of `masks.absorbing`. Meant to be jitted whole.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mim_jax.samplers.draw import token

RULES = ('cap', 'rescale', 'confidence')  # of `remasking`


def _linear(t: Array) -> Array:
    return t


def ancestral(
    key: Array,
    logits_fn: Callable,
    ids: Array,
    hidden: Array,
    *,
    steps: int,
    share: Callable = _linear,
    draw: Callable = token,
    block: int = 0,
    cached: bool = True,
) -> Array:
    """The reverse of absorbing diffusion in `steps` steps from time 1 to 0 (MDLM, arXiv 2406.07524; MD4, 2406.04329).

    A hidden token is revealed in the step from t to s with probability 1 - share(s) / share(t). When that is does not depend on
    the network, so it is drawn beforehand, and so is the one number that decides which token it becomes.

    Args:
        block: blocks of so many tokens are revealed one after the other, `steps` steps each (semi-autoregressive, arXiv 2503.09573;
            LLaDA, 2502.09992); 0 = all at once.
        cached: ask the network only for steps in which a row reveals a token; the tokens are the same.
    """
    u = jax.random.uniform(jax.random.fold_in(key, 0), ids.shape)
    after = share(1 - jnp.arange(1, steps + 1) / steps).at[-1].set(0.0)  # f32[steps], share hidden after each step
    event = (u[..., None] < after).sum(-1)  # i32[B, N]
    blocks, left = _blocks(ids.shape[1], block)
    event = event + (blocks - 1 - left) * steps
    level = (jnp.arange(blocks)[::-1, None] + share(1 - jnp.arange(steps) / steps)) / blocks
    level = jnp.broadcast_to(level.reshape(-1), (len(ids), blocks * steps))
    return reveal(jax.random.fold_in(key, 1), logits_fn, ids, hidden, event, level, draw=draw, cached=cached)


def first_hitting(
    key: Array, logits_fn: Callable, ids: Array, hidden: Array, *, draw: Callable = token, block: int = 0
) -> Array:
    """The limit of infinitely many steps, without them (arXiv 2409.02908): one token at a time in random order, exact.

    The level that belongs to the j-th reveal is the j-th largest of as many uniform numbers as there are tokens, whatever the schedule.
    """
    blocks, left = _blocks(ids.shape[1], block)
    level = (left + jax.random.uniform(jax.random.fold_in(key, 0), ids.shape)) / blocks
    level = jnp.where(hidden, level, -1.0)
    event = jnp.argsort(jnp.argsort(-level, -1), -1)  # i32[B, N]: place in descending order
    level = jnp.sort(level, -1, descending=True)
    return reveal(jax.random.fold_in(key, 1), logits_fn, ids, hidden, event, level, draw=draw)


def _blocks(n: int, block: int) -> tuple[int, Array]:
    """How many blocks n tokens make, and how many come after that of each token, i32[n]; `block` = 0 makes one."""
    blocks = -(-n // (block or n))
    return blocks, blocks - 1 - jnp.arange(n) // (block or n)


def reveal(
    key: Array,
    logits_fn: Callable,
    ids: Array,
    hidden: Array,
    event: Array,
    level: Array,
    *,
    draw: Callable = token,
    cached: bool = True,
) -> Array:
    """Reveals each hidden token at its own event, by the answer of the network just before.

    Args:
        event: i32[B, N] below E.
        level: f32[B, E], what the network is told at each.
        cached: a row goes straight to its next event; steps without one, which would change nothing, are left out.
    """
    if cached:
        event, level = _without_gaps(event, level, hidden)
    steps = jnp.where(hidden, event, -1).max() + 1 if cached else level.shape[1]

    def step(i, state):
        ids, hidden = state
        now = hidden & (event == i)
        answers = draw(key, logits_fn(ids, hidden, level[:, i]))  # the same key: each token is taken once
        return jnp.where(now, answers, ids), hidden & ~now

    return jax.lax.fori_loop(0, steps, step, (ids, hidden))[0]


def _without_gaps(event: Array, level: Array, hidden: Array) -> tuple[Array, Array]:
    """Events numbered 0, 1, ... in each row, and their levels."""
    rows, size = jnp.arange(len(event))[:, None], level.shape[1]
    used = jnp.zeros(level.shape, bool).at[rows, event].max(hidden)
    place = jnp.cumsum(used, -1) - 1  # i32[B, E]
    compact = jnp.zeros_like(level).at[rows, jnp.where(used, place, size)].set(level, mode='drop')
    return jnp.take_along_axis(place, event, 1), compact


def remasking(
    key: Array,
    logits_fn: Callable,
    ids: Array,
    hidden: Array,
    *,
    steps: int,
    share: Callable = _linear,
    draw: Callable = token,
    rule: str = 'rescale',
    eta: float = 0.02,
) -> Array:
    """Ancestral steps that also hide revealed tokens again, so that errors can be mended (ReMDM, arXiv 2503.00307).

    A revealed token is hidden again with probability r, and a hidden one revealed so that, on average, as many are hidden as in
    the forward process, which allows r up to the share hidden after the step over the share revealed before it.

    Args:
        rule: 'cap': r = eta, or the most allowed if that is less; 'rescale': eta times the most; 'confidence': the most, shared out
            by a softmax over minus the probability each token had when it was drawn, and hidden tokens are revealed as in `ancestral`.
        eta: see `rule`; 0 = `ancestral`.

    Raises:
        ValueError: unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f'remasking rule {rule!r} is not one of {", ".join(RULES)}')
    free = hidden

    def step(i, state):
        ids, hidden, chance = state
        k1, k2 = jax.random.split(jax.random.fold_in(key, i))
        before, after = share(1 - i / steps), jnp.where(i + 1 == steps, 0.0, share(1 - (i + 1) / steps))
        most = jnp.minimum(1.0, after / jnp.maximum(1 - before, 1e-6))
        again = jnp.minimum(eta, most) if rule == 'cap' else eta * most
        stay = (after - again * (1 - before)) / before
        if rule == 'confidence':
            doubt = jnp.where(free & ~hidden, jnp.exp(-chance), 0.0)
            again, stay = most * doubt / jnp.maximum(doubt.sum(-1, keepdims=True), 1e-6), after / before
        logits = logits_fn(ids, hidden, jnp.full(len(ids), before))
        drawn = draw(k1, logits)
        p = jnp.take_along_axis(jax.nn.softmax(logits, -1), drawn[..., None], -1)[..., 0]
        then = free & (jax.random.uniform(k2, ids.shape) < jnp.where(hidden, stay, again))
        new = hidden & ~then
        return jnp.where(new, drawn, ids), then, jnp.where(new, p, chance)

    return jax.lax.fori_loop(0, steps, step, (ids, hidden, jnp.ones(ids.shape)))[0]


def confidence(
    key: Array,
    logits_fn: Callable,
    ids: Array,
    hidden: Array,
    *,
    steps: int,
    share: Callable = _linear,
    draw: Callable = token,
    noise: float = 0.0,
    block: int = 0,
    remask: bool = False,
) -> Array:
    """Draws every hidden token in each of `steps` steps and keeps the most confident ones (MaskGIT, arXiv 2202.04200).

    After step i the share(1 - i / steps) of the tokens that were hidden at first, rounded down, are still hidden; at least one is
    revealed in each step while there are any. Fast, and not a sampler of the network's distribution.

    Args:
        noise: of Gumbel noise on the logarithm of the probabilities, falling linearly to 0 (MaskGIT: 4.5).
        block: as of `ancestral`, `steps` steps for each block.
        remask: a token revealed before competes with what it was drawn with and may be hidden again (running confidence
            remasking of MDPO, arXiv 2508.13148).
    """
    free, (blocks, left) = hidden, _blocks(ids.shape[1], block)

    def step(i, state):
        ids, hidden, kept = state
        k1, k2 = jax.random.split(jax.random.fold_in(key, i))
        now, done = left == blocks - 1 - i // steps, (i % steps + 1) / steps
        logits = logits_fn(ids, hidden, hidden.mean(-1))
        drawn = draw(k1, logits)
        score = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), drawn[..., None], -1)[..., 0]
        score += noise * (1 - done) * jax.random.gumbel(k2, score.shape)
        ids, kept = jnp.where(hidden & now, drawn, ids), jnp.where(hidden & now, score, kept)
        score = jnp.where(free & now & (hidden | remask), kept, jnp.inf)
        of_all = jnp.floor(share(1 - done) * (free & now).sum(-1))
        still = jnp.where(done < 1, jnp.minimum(of_all, (hidden & now).sum(-1) - 1), 0)  # f32[B]
        order = jnp.argsort(jnp.argsort(score, -1), -1)
        return ids, (hidden & ~now) | (order < still[:, None]), kept

    return jax.lax.fori_loop(0, blocks * steps, step, (ids, hidden, jnp.zeros(ids.shape)))[0]
