"""Mean magnitudes: the scales of binary and ternary methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from qresearch.numerics.rounding import in_steps


def mean_magnitude(
    x: Float[Array, "..."], axes: tuple[int, ...], kept: Bool[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """The mean of |x| over ``axes``, of the ``kept`` elements only, in float32, floored at the smallest normal number.

    The mean of n equal magnitudes is that magnitude exactly, so that what a method quantized is quantized to itself
    again, and nothing near float32's largest value overflows: the largest one is divided out before the sum.
    The gradient in x is sign(x) / n.
    """
    size = jnp.abs(x.astype(jnp.float32))
    size = size if kept is None else jnp.where(kept, size, 0.0)
    largest = jax.lax.stop_gradient(jnp.max(size, axis=axes, keepdims=True))
    largest = jnp.where(largest > 0.0, largest, 1.0)
    ones = jnp.ones_like(size) if kept is None else kept.astype(jnp.float32)
    total = jnp.sum(in_steps(size, largest), axis=axes, keepdims=True)
    count = jnp.maximum(jnp.sum(ones, axis=axes, keepdims=True), 1.0)
    return jnp.maximum(in_steps(total, count) * largest, jnp.finfo(jnp.float32).tiny)
