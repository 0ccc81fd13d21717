"""Integer grids: the codes of a bit-width, and the scale and zero-point that map a range of values onto them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_BITS, MAX_BITS = 1.0, 31.0  # the widths that have an integer grid; 0 means pruned, 32 and above float


def clamp_bits(bits: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Bits moved into [1, 31], with gradient 1 inside and 0 outside.

    A ``where`` on the argument, not on the result: 2**200 is infinite, and its gradient NaN even when unselected.
    """
    bits = jnp.asarray(bits, jnp.float32)
    return jnp.where(bits < MIN_BITS, MIN_BITS, jnp.where(bits > MAX_BITS, MAX_BITS, bits))


def integer_range(
    bits: Float[Array, "..."] | float, signed: bool, narrow: bool = False
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The smallest and largest code (qmin, qmax) of a grid of ``bits`` bits, as float32, differentiable in bits.

    signed [-2^(b-1), 2^(b-1) - 1], unsigned [0, 2^b - 1]; ``narrow`` drops the code that makes the signed grid
    asymmetric (the largest one of the unsigned grid, as in Brevitas). Shapes follow ``bits``.
    """
    bits = clamp_bits(bits)
    # 2.0 ** bits is exact for integers; exp2 lowers to exp(0.693 bits), and exp2(13) gives 8192.004.
    if signed:
        half = jnp.float32(2.0) ** (bits - 1.0)
        return (1.0 - half if narrow else -half), half - 1.0
    levels = jnp.float32(2.0) ** bits
    return jnp.zeros_like(bits), levels - (2.0 if narrow else 1.0)


def scale_from_range(
    low: Float[Array, "..."],
    high: Float[Array, "..."],
    qmin: Float[Array, "..."],
    qmax: Float[Array, "..."],
    symmetric: bool,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The (scale, zero_point) with which the codes [qmin, qmax] cover the values [low, high], zero included.

    symmetric: scale = max(|low|, |high|) / qmax, zero_point 0 (so -128 is used only by values rounded past -127).
    affine: scale = (high - low) / (qmax - qmin), zero_point = round(qmin - low / scale).
    A constant zero tensor gets the smallest positive scale instead of a division by zero; a grid of a single code
    (narrow, 1 bit) counts as one step.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    if symmetric:
        bound = jnp.maximum(jnp.abs(low), jnp.abs(high))
        scale = jnp.maximum(bound / _at_least_one(qmax), tiny)
        return scale, jnp.zeros_like(scale)
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = jnp.maximum((high - low) / _at_least_one(qmax - qmin), tiny)
    zero_point = jnp.round(qmin - low / scale)
    return scale, jnp.clip(zero_point, qmin, qmax)


def _at_least_one(steps: Array) -> Array:
    """max(steps, 1) with the whole gradient at 1, the signed grid of 2 bits, where ``jnp.maximum`` gives one half."""
    return jnp.where(steps >= 1.0, steps, 1.0)
