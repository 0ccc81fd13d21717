"""Rounding to integers, and the straight-through estimator of its gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# Half to even is the default everywhere: it is what NumPy, JAX, torch and ONNX do, and it has no bias.
ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "half_even": jnp.round,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "toward_zero": jnp.trunc,
}


def wide_dtype(x: Array) -> jnp.dtype:
    """What quantizers compute in: float32, also for 16-bit x; float64 for the float64 of a closed form's test."""
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def in_steps(x: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / scale in ``wide_dtype``, correctly rounded: the one division that every code comes from.

    XLA rewrites a division by a broadcast into x * (1 / scale), which moves ties to another code than NumPy, ONNX,
    LSQ's own code and Brevitas choose. Where a NaN of x would replace the scale (the quotient is NaN either way), the
    divisor is no broadcast, and nothing is materialized as behind an optimization barrier. (An x that is a constant of
    the compiled program is folded, and may be divided the other way.)
    """
    return x.astype(wide_dtype(x)) / jnp.where(jnp.isnan(x), jnp.nan, scale)


def stochastic_round(x: Float[Array, "..."], noise: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds down or up with expectation x: floor(x + u), u ~ U[0, 1) of the shape of x.

    Gupta et al., Deep Learning with Limited Numerical Precision, 2015, https://arxiv.org/abs/1502.02551.
    """
    return jnp.floor(x + noise)


def rounding_noise(key: PRNGKeyArray | Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Draws the uniform noise that ``stochastic_round`` needs. Use a key for one tensor only."""
    return jax.random.uniform(key, x.shape, jnp.float32)


def ste_round(x: Float[Array, "..."], rounding: str = "half_even") -> Float[Array, "..."]:
    """Rounds to an integer; the gradient is that of the identity (the straight-through estimator).

    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013, https://arxiv.org/abs/1308.3432.
    """
    return x + jax.lax.stop_gradient(ROUNDINGS[rounding](x) - x)
