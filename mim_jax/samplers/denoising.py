"""From noise to data, with a network that tells what is clean and what is noise.

A sampler is `(key, denoise_fn, x, *, schedule, times, pin) -> x`: x f32[B, ...] is noise of unit variance, `denoise_fn(x, t f32[B])` gives
the expected (clean, noise), `schedule` is one of `mim_jax.noise`, and `times` f32[S + 1] falls from 1 to 0. `pin(key, x, alpha, sigma) -> x` may set
what is known after each step, see `known`. Meant to be jitted whole.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def known(values: Array, where: Array) -> Callable:
    """A `pin` that keeps values f32[B, ...] `where` bool[B, ...], noised as the rest is (inpainting, arXiv 2201.09865 without resampling)."""

    def pin(key, x, alpha, sigma):
        return jnp.where(where, alpha * values + sigma * jax.random.normal(key, x.shape), x)

    return pin


def _free(key, x, alpha, sigma):
    return x


def ddim(
    key: Array,
    denoise_fn: Callable,
    x: Array,
    *,
    schedule,
    times: Array,
    pin: Callable = _free,
    eta: float = 0.0,
    temperature: float = 1.0,
) -> Array:
    """DDIM (arXiv 2010.02502): without noise of its own at eta = 0, DDPM (2006.11239) at eta = 1.

    `temperature` scales the noise that is added (MAR, 2406.11838); 1 = as trained.
    """

    def step(x, each):
        i, t, s = each
        k1, k2 = jax.random.split(jax.random.fold_in(key, i))
        (alpha, sigma), (alpha_s, sigma_s) = schedule.level(t), schedule.level(s)
        clean, noise = denoise_fn(x, jnp.full(len(x), t))
        added = jnp.maximum(sigma**2 - (alpha / alpha_s * sigma_s) ** 2, 0)  # variance between s and t
        fresh = eta * sigma_s / sigma * jnp.sqrt(added)
        x = alpha_s * clean + jnp.sqrt(jnp.maximum(sigma_s**2 - fresh**2, 0)) * noise
        x = x + temperature * fresh * jax.random.normal(k1, x.shape)
        return pin(k2, x, alpha_s, sigma_s), None

    return _walk(step, x, schedule, times)


def ode(
    key: Array,
    denoise_fn: Callable,
    x: Array,
    *,
    schedule,
    times: Array,
    pin: Callable = _free,
    order: int = 2,
    variable: str = 'time',
) -> Array:
    """The probability flow (arXiv 2011.13456) by Euler's steps (order 1) or Heun's (2), the last one always Euler's.

    Args:
        variable: what steps are straight in: 'time', dx/dt = alpha' clean + sigma' noise, as flow matching has it, or 'ratio', x / alpha over
            sigma / alpha, as EDM has it (arXiv 2206.00364), where alpha must not be 0 at the first time.

    Raises:
        ValueError: another order or variable.
    """
    if order not in (1, 2) or variable not in ('time', 'ratio'):
        raise ValueError(f"ode takes order 1 or 2 and variable 'time' or 'ratio', not {order} and {variable!r}")

    def place(t):
        """(what x is divided by, the variable) at t."""
        alpha, sigma = schedule.level(t)
        return (jnp.ones_like(t), t) if variable == 'time' else (alpha, sigma / alpha)

    def slope(x, t):
        clean, noise = denoise_fn(x, jnp.full(len(x), t))
        if variable == 'ratio':
            return noise
        alpha_rate, sigma_rate = jax.jvp(schedule.level, (t,), (jnp.ones_like(t),))[1]
        return alpha_rate * clean + sigma_rate * noise

    def step(x, each):
        i, t, s = each
        (scale, u), (scale_s, u_s) = place(t), place(s)
        first = slope(x, t)
        ahead = scale_s * (x / scale + (u_s - u) * first)
        if order == 2:
            second = jax.lax.cond(i + 2 < len(times), lambda: slope(ahead, s), lambda: first)
            ahead = scale_s * (x / scale + (u_s - u) * (first + second) / 2)
        return pin(jax.random.fold_in(key, i), ahead, *schedule.level(s)), None

    return _walk(step, x, schedule, times)


def _walk(step, x, schedule, times):
    x = schedule.level(times[0])[1] * x
    return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]


def guided(
    conditional: Callable, unconditional: Callable, scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Callable:
    """A `denoise_fn` of two (arXiv 2207.12598), mixed with `scale` at times in the interval (2404.07724) and the first alone outside."""

    def denoise(x, t):
        low, high = interval[0] - 1e-4, interval[1] + 1e-4  # times of `noise.rooted` miss 0 and 1 by a rounding
        within = ((t >= low) & (t <= high)).reshape(-1, *[1] * (x.ndim - 1))
        mix = jnp.where(within, scale, 1.0)
        return tuple(b + mix * (a - b) for a, b in zip(conditional(x, t), unconditional(x, t), strict=True))

    return denoise
