"""Mean and standard deviation that neither overflow nor underflow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.rounding import in_steps


def mean_and_deviation(
    x: Float[Array, "..."], axes: tuple[int, ...]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The mean and the unbiased standard deviation (n - 1) over ``axes``, in float32, without a gradient.

    The deviation is positive: 1 where all elements are equal. The largest distance from the mean is divided out before
    it is squared, so that values from 1e-37 to 1e37 work.
    """
    x = jax.lax.stop_gradient(x.astype(jnp.float32))
    mean = jnp.mean(x, axis=axes, keepdims=True)
    largest = jnp.max(jnp.abs(x - mean), axis=axes, keepdims=True)
    parts = in_steps(x - mean, jnp.where(largest > 0.0, largest, 1.0))
    degrees = max(x.size // mean.size - 1, 1)
    deviation = largest * jnp.sqrt(jnp.sum(parts * parts, axis=axes, keepdims=True) / degrees)
    return mean, jnp.where(deviation > 0.0, deviation, 1.0)


def root_mean_square(x: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """sqrt(mean of x²) over ``axes``, in float32; the largest magnitude is divided out before squaring."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    parts = in_steps(x, jnp.where(largest > 0.0, largest, 1.0))
    return largest * jnp.sqrt(jnp.mean(parts * parts, axis=axes, keepdims=True))
