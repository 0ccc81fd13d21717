"""Division by a learned scale, with a gradient that survives scales near float32's limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through


def clipped_ratio(
    x: Float[Array, "..."], scale: Float[Array, "..."], low: Float[Array, ""] | float, high: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """clip(x / scale, low, high) in float32, correctly rounded; its slopes are 1 / scale and -(x / scale) / scale.

    Both are 0 outside the bounds, which get none; a tie with a bound is inside. scale broadcasts over x and must be at
    least 1e-35. (Autodiff would form 1 / scale², which is infinite for a scale of 1e-20 and 0 for one of 1e20.)
    """
    x = x.astype(jnp.float32)
    scale = jnp.broadcast_to(scale, x.shape)
    fixed, low, high = jax.lax.stop_gradient((scale, low, high))
    units = in_steps(jax.lax.stop_gradient(x), fixed)
    inside = (units >= low) & (units <= high)
    in_x = jnp.where(inside, 1.0 / fixed, 0.0)
    clipped = jnp.clip(units, low, high)
    return straight_through(straight_through(clipped, x, in_x), scale, -clipped * in_x)
