"""The straight-through estimator as a function: any value forward, any slope backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def straight_through(
    quantized: Float[Array, "*s"], x: Float[Array, "*s"], slope: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """``quantized`` bit for bit; the gradient goes to x times ``slope``, to ``quantized`` unchanged, to slope not.

    For estimators that are no function's derivative: the slope is 1 inside a grid and 0 outside for the clipped one,
    1 everywhere for the plain one. (x + stop_gradient(quantized - x) would return quantized to a last bit only.)
    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013, https://arxiv.org/abs/1308.3432.
    """
    return quantized


def _forward(quantized: Array, x: Array, slope: Array) -> tuple[Array, Array]:
    return quantized, slope


def _backward(slope: Array, upstream: Array) -> tuple[Array, Array, Array]:
    return upstream, upstream * slope, jnp.zeros_like(slope)


straight_through.defvjp(_forward, _backward)
