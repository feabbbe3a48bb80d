"""Elementwise regression losses, averaged over a token's values and then, with weights, over tokens."""

import jax.numpy as jnp
from jax import Array


def weighted_mean(loss: Array, weight: Array) -> Array:
    """Mean of loss[B, T] under weight[B, T], in f32; 0 where every weight is 0."""
    weight = weight.astype(jnp.float32)
    return (loss.astype(jnp.float32) * weight).sum() / jnp.maximum(weight.sum(), 1e-6)


def squared_error(prediction: Array, goal: Array) -> Array:
    """Elementwise (prediction - goal)^2, in f32."""
    return jnp.square(prediction.astype(jnp.float32) - goal.astype(jnp.float32))


def absolute_error(prediction: Array, goal: Array) -> Array:
    """Elementwise |prediction - goal|, in f32."""
    return jnp.abs(prediction.astype(jnp.float32) - goal.astype(jnp.float32))


def huber(prediction: Array, goal: Array, beta: float) -> Array:
    """Elementwise: squared below `beta`, linear above, of slope one (Fast R-CNN, arXiv 1504.08083)."""
    error = absolute_error(prediction, goal)
    return jnp.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)


def mse(prediction: Array, goal: Array, weight: Array) -> Array:
    """Mean squared error of [B, T, R] under weight[B, T]."""
    return weighted_mean(squared_error(prediction, goal).mean(-1), weight)


def l1(prediction: Array, goal: Array, weight: Array) -> Array:
    """Mean absolute error of [B, T, R] under weight[B, T] (SimMIM, arXiv 2111.09886)."""
    return weighted_mean(absolute_error(prediction, goal).mean(-1), weight)


def smooth_l1(prediction: Array, goal: Array, weight: Array, *, beta: float = 1.0) -> Array:
    """Huber-type error of [B, T, R] under weight[B, T], scaled to slope one."""
    return weighted_mean(huber(prediction, goal, beta).mean(-1), weight)
