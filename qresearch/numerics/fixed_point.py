"""Requantization: from an integer sum of code products to a value, by a float or by a whole multiplier and a shift."""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from qresearch.numerics.formats import power_of_two

MULTIPLIER_BITS = 24  # a float32 significand: the multiplier is the scale itself, not an approximation of it


class Rescale(Protocol):
    """``rescale(quarters, scale) -> values``: quarters is int32, four times the sum of products; scale broadcasts."""

    def __call__(self, quarters: Int[Array, "..."], scale: Float[Array, "..."], /) -> Float[Array, "..."]: ...


def float_rescale(quarters: Int[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """(quarters / 4) scale in float32: the product is rounded, and the sum too where it is above 2^24 quarters."""
    # Without the choice a compiler may fuse the product with an addition that follows, which then rounds once instead
    # of twice: in one program, and not in its simulation. (Optimization barriers are gone when that is decided.)
    return jnp.where(jnp.isnan(scale), jnp.nan, 0.25 * quarters.astype(jnp.float32) * scale)


def fixed_rescale(quarters: Int[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same in integers, as hardware without floats does it: a product with a whole number, and a shift.

    scale = m 2^e with m = M / 2^24 in [1/2, 1), so that the multiplier M is a whole number of 24 bits and exact. The
    result is round(quarters M / 2^shift) steps of 2^(E - 2), halves away from zero, E the largest exponent of all
    scales: one power of two for the whole tensor, at most half of what one unit of the sum is worth at the largest
    scale. So |result - (quarters / 4) scale| <= 2^(E - 3); float32 holds up to 2^24 of those steps exactly.
    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018,
    https://arxiv.org/abs/1712.05877, section 2.2. Where we differ: their multiplier has 31 bits and includes the next
    tensor's scale, since nothing between their layers is float; HAWQ-V3's dyadic numbers are the same idea.
    """
    fraction, exponent = jnp.frexp(scale)
    exponent = jnp.where(scale > 0.0, exponent, -126)  # frexp gives a zero the exponent 0, which may be the largest
    largest = jnp.maximum(jnp.max(exponent), -120)
    multiplier = (fraction * 2.0**MULTIPLIER_BITS).astype(jnp.uint32)
    shift = MULTIPLIER_BITS + jnp.minimum(largest - exponent, 63 - MULTIPLIER_BITS)
    magnitude = jnp.abs(quarters).astype(jnp.uint32)
    steps = _shifted(*_product(magnitude, multiplier), shift.astype(jnp.uint32)).astype(jnp.int32)
    return (jnp.sign(quarters) * steps).astype(jnp.float32) * power_of_two(largest - 2)


RESCALES: dict[str, Rescale] = {"float": float_rescale, "fixed": fixed_rescale}


def _product(a: UInt[Array, "..."], b: UInt[Array, "..."]) -> tuple[UInt[Array, "..."], UInt[Array, "..."]]:
    """(high, low) 32 bits of the product of a below 2^31 and b below 2^24: JAX has no 64-bit integers by default."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 12, b & 0xFFF
    # Each of the four partial products is below 2^28; they stand 28, 16, 12 and 0 bits to the left.
    parts = ((a_high * b_high, 28), (a_high * b_low, 16), (a_low * b_high, 12))
    low, high = a_low * b_low, jnp.zeros_like(a + b)
    for part, place in parts:
        moved = part << place
        total = low + moved
        high = high + (part >> (32 - place)) + (total < moved).astype(jnp.uint32)
        low = total
    return high, low


def _shifted(high: Array, low: Array, shift: UInt[Array, "..."]) -> UInt[Array, "..."]:
    """(high 2^32 + low) / 2^shift, halves up; shift from 24 to 63, and what comes out is below 2^32."""
    half = shift - 1
    rounded = low + jnp.where(half < 32, jnp.uint32(1) << jnp.minimum(half, 31), 0)
    high = high + (rounded < low).astype(jnp.uint32) + jnp.where(half >= 32, jnp.uint32(1) << (half % 32), 0)
    near = (rounded >> jnp.minimum(shift, 31)) | (high << jnp.minimum(32 - jnp.minimum(shift, 31), 31))
    return jnp.where(shift < 32, near, high >> (jnp.maximum(shift, 32) - 32))
