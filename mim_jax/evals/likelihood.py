"""How likely validation data are under a model of tokens: bounds, exact values, and what is neither."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.evals.features import everywhere, put, records, spread
from mim_jax.masks import absorbing


def likelihood(
    objective, data, *, draws: int = 8, batch_size: int = 32, mask: Mapping | None = None, seed: int = 0
) -> Callable:
    """`params -> {'eval/nelbo_nats', ...}`: the negative evidence lower bound of the validation data, or of what is autoregressive the exact value.

    nelbo_nats and bits_per_token are per token, perplexity is e to the former; bits_per_byte, of text, divides by the
    bytes of UTF-8 that the tokens stand for. nelbo_nats_error is the standard error that comes from drawing masks, not from the choice
    of the data. Rows draw independently of each other; the levels of a row are spread over its draws, which makes it an upper estimate.

    Args:
        objective: has `nats(batch, key, mask) -> (nats f32[B], tokens f32[B])`, and `exact`.
        data: LabelledData.
        draws: masks of each row, 2 or more.
        batch_size: rows at once, each `draws` times.
        mask: options of `masks.absorbing`. None = by counts, whose estimate varies least, or as in training where the network is told the
            level: there a bound by counts, or of steps, is that of another model. In continuous time schedules differ by `eps` alone.
        seed: of the masks.
    """
    exact = objective.exact
    draw = (
        objective.mask
        if mask is None and objective.knows_level and not exact
        else partial(absorbing, **(mask or dict(by='count')))
    )
    draws = 1 if exact else draws

    def masks(key: jax.Array, grid):
        rows = jnp.arange(grid[0] // draws)
        each = jax.vmap(lambda row: draw(jax.random.fold_in(key, row), (draws, *grid[1:])))(rows)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)

    @jax.jit
    def nats(params: dict, batch: dict, key: jax.Array):
        batch = data.augment(key, batch, train=False)
        many = {name: jnp.repeat(x, draws, 0) for name, x in batch.items()}
        mask = None if exact else masks(key, objective.tokenizer(many).grid)
        found, tokens = objective.apply({'params': params}, many, key, mask, method='nats')
        return found.reshape(-1, draws), tokens[::draws], batch.get('bytes', jnp.zeros(len(batch['valid'])))

    def evaluate(params: dict) -> dict[str, float]:
        total = variance = tokens = size = 0.0
        for i, batch in enumerate(data.val(batch_size)):
            outs = nats(params, put(batch, batch_size), jax.random.fold_in(jax.random.key(seed), i))
            found, count, bytes_ = (np.float64(x) for x in everywhere(outs))
            total += found.mean(1).sum()
            variance += found.var(1, ddof=1).sum() / draws if draws > 1 else 0.0
            tokens, size = tokens + count.sum(), size + bytes_.sum()
        return numbers(total, tokens, size) | ({} if exact else {'eval/nelbo_nats_error': math.sqrt(variance) / tokens})

    return evaluate


def numbers(nats: float, tokens: float, size: float) -> dict[str, float]:
    """The same in the units that papers use; `size` in bytes, 0 = not known."""
    each = nats / tokens
    found = {
        'eval/nelbo_nats': each,
        'eval/bits_per_token': each / math.log(2),
        'eval/perplexity': math.exp(min(each, 700)),
    }
    return found | ({'eval/bits_per_byte': nats / size / math.log(2)} if size else {})


def pseudo_likelihood(objective, data, *, rows: int = 4) -> Callable:
    """`params -> {'eval/pseudo_nats', 'eval/pseudo_nats_error'}`: mean nats of a token when all others are seen (arXiv 1910.14659).

    It is no likelihood and bounds none: it is nearly always lower. Every token of `rows` validation records, evenly spaced, takes a pass
    of the network; the error is the standard error that comes from their choice, and is left out where there is but one.
    """

    @jax.jit
    def nats(params: dict, batch: dict):
        b, n = batch['ids'].shape

        def one(i):
            mask = absorbing(jax.random.key(0), (b, n))
            hidden = jnp.broadcast_to(jnp.arange(n) == i, (b, n))
            mask = mask.replace(hidden=hidden, weight=hidden.astype(jnp.float32), level=jnp.full(b, 1 / n))
            return objective.apply({'params': params}, batch, jax.random.key(0), mask, method='nats')[0]

        total = jax.lax.map(one, jnp.arange(n)).sum(0)
        full = absorbing(jax.random.key(0), (b, n))
        return total, objective.apply({'params': params}, batch, jax.random.key(0), full, method='nats')[1]

    def evaluate(params: dict) -> dict[str, float]:
        outs = nats(params, spread(records(data.val(rows, count=rows), rows)))
        total, tokens = (np.float64(x) for x in everywhere(outs))  # of each row; none are of rows that fill up
        mean, count = total.sum() / tokens.sum(), np.count_nonzero(tokens)
        found = {'eval/pseudo_nats': float(mean)}
        if count > 1:
            error = np.sqrt(count / (count - 1) * np.square(total - mean * tokens).sum()) / tokens.sum()
            found['eval/pseudo_nats_error'] = float(error)
        return found

    return evaluate
