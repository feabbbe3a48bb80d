"""A mixture of two Gaussians in the plane, whose best denoiser has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np

CENTRES, SHARES, STD = np.float32([[1.0, 0.5], [-0.8, -1.0]]), np.float32([0.7, 0.3]), 0.25


def draw(rng, rows):
    """f32[rows, 2]."""
    which = rng.choice(len(SHARES), rows, p=SHARES / SHARES.sum())
    return (CENTRES[which] + STD * rng.standard_normal((rows, 2))).astype(np.float32)


def denoise(schedule, x, t):
    """E(clean | x), E(noise | x) at t f32[B]."""
    alpha, sigma = (z[:, None] for z in schedule.level(t))
    variance = (alpha * STD) ** 2 + sigma**2
    away = x[:, None] - alpha[..., None] * CENTRES  # f32[B, 2 centres, 2]
    share = jax.nn.softmax(jnp.log(SHARES) - (away**2).sum(-1) / (2 * variance))[..., None]
    clean = (share * (CENTRES + (alpha * STD**2 / variance)[..., None] * away)).sum(1)
    noise = (share * (sigma / variance)[..., None] * away).sum(1)
    return clean, noise
