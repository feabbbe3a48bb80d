"""Drawing a token from logits f32[..., V]: exact, and what is done to the logits before."""

import jax
import jax.numpy as jnp
from jax import Array

NEVER = -jnp.inf  # logit of what is not to be drawn


def categorical(key: Array, logits: Array) -> Array:
    """i32[...] drawn from softmax(logits f32[..., V]) by inverting its cumulative distribution.

    The noise is two uniform numbers a token, see `inverse`, so rare tokens are drawn as often as they should be. The usual argmax of
    logits + Gumbel noise made of 32-bit uniforms cuts them off: noise above 17 never comes, and a large vocabulary is drawn as at a
    lower temperature (arXiv 2409.02908). Tokens of probability 0 are never drawn.
    """
    return inverse(jax.random.uniform(key, (2, *logits.shape[:-1])), logits)


def inverse(u: Array, logits: Array) -> Array:
    """i32[...]: the block of tokens at u[0], and in it the token at u[1], of cumulative distributions of softmax(logits).

    Blocks of about sqrt(V) tokens keep the sums short, and so exact to a few units in the last place. A uniform number has a grid of
    2^-23: one for both levels could not reach all tokens of a block that is as rare as that; its own number reaches every one.

    Args:
        u: f32[2, ...] in [0, 1).
        logits: f32[..., V].
    """
    p = jax.nn.softmax(logits.astype(jnp.float32), -1)
    size = logits.shape[-1]
    width = max(int(size**0.5), 1)
    p = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, -size % width)]).reshape(*p.shape[:-1], -1, width)
    block = _locate(u[0], p.sum(-1))
    inside = jnp.take_along_axis(p, block[..., None, None], -2)[..., 0, :]  # f32[..., width]
    return block * width + _locate(u[1], inside)


def _locate(u: Array, mass: Array) -> Array:
    """Which of mass f32[..., n] the share u of their sum falls into, i32[...]; never one of no mass."""
    n, edges = mass.shape[-1], jnp.cumsum(mass, -1)
    edges = jnp.where(mass > 0, edges, 0.0)  # sums in parallel may round differently to the left and right of no mass
    total = edges.max(-1)
    below = jnp.minimum(u * total, jnp.nextafter(total, jnp.zeros(())))
    index = jnp.where(edges > below[..., None], jnp.arange(n, dtype=jnp.int32), n).min(-1)
    return index % n  # without any mass, as where logits are nan, the first


def gumbel(key: Array, logits: Array) -> Array:
    """As `categorical`, by the largest of logits + Gumbel noise of twice the bits: the same law, more work, no cumulative sums."""
    return jax.random.categorical(key, logits.astype(jnp.float32), mode='high').astype(jnp.int32)


DRAWS = dict(inverse=categorical, gumbel=gumbel)


def token(
    key: Array, logits: Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, method: str = 'inverse'
) -> Array:
    """i32[...] from logits f32[..., V] sharpened and cut: see `sharpen`. Temperature 0 takes the likeliest.

    Args:
        method: 'inverse' or 'gumbel', see `categorical` and `gumbel`.
    """
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    return DRAWS[method](key, sharpen(logits, temperature, top_k, top_p))


def sharpen(logits: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Logits / temperature, with -inf for all but the `top_k` likeliest (0 = all; arXiv 1805.04833) and for what lies beyond
    the smallest set of probability `top_p` (arXiv 1904.09751; the likeliest always stays)."""
    logits = logits.astype(jnp.float32) / temperature
    if top_k:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, NEVER, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, -1, descending=True)
        p = jax.nn.softmax(ordered, -1)
        kept = jnp.cumsum(p, -1) - p < top_p  # the sum before a token decides on it
        kept |= jnp.arange(p.shape[-1]) == 0
        least = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, NEVER, logits)
    return logits


def guide(logits: Array, unconditional: Array, scale: float | Array) -> Array:
    """Classifier-free guidance (arXiv 2207.12598): scale 1 is the conditional model, 0 the unconditional one."""
    return unconditional + scale * (logits - unconditional)
