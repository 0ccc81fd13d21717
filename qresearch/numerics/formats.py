"""Small floating-point formats, simulated exactly in float32: rounding onto them, and their bit patterns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qresearch.numerics.rounding import ROUNDINGS, stochastic_round


class FloatFormat(NamedTuple):
    """A sign, ``exponent_bits`` and ``mantissa_bits``; finite values up to ``max_value``, subnormals included.

    exponent_bits 0 is fixed point: multiples of 2^-mantissa_bits, as the integer elements of MX are.
    """

    exponent_bits: int
    mantissa_bits: int
    max_value: float

    @property
    def bits(self) -> int:
        """The width of a stored value; fixed point has one integer bit beside sign and fraction."""
        return 1 + max(self.exponent_bits, 1) + self.mantissa_bits

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest value: floor(log2(max_value))."""
        return math.frexp(self.max_value)[1] - 1

    @property
    def min_exponent(self) -> int:
        """The exponent of the smallest normal value, IEEE's 1 - bias; subnormals are spaced as the values above it."""
        return 2 - 2 ** (self.exponent_bits - 1) if self.exponent_bits else self.max_exponent


# OCP 8-bit Floating Point Specification, 2023 (e4m3 has no infinity and one NaN, hence 448), and OCP Microscaling
# Formats (MX) Specification 1.0, 2023: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
# The MX integers are read as fixed point with one integer bit. int4 and int2 are not in it, but in microxcaling.
FORMATS: dict[str, FloatFormat] = {
    "fp8_e4m3": FloatFormat(4, 3, 448.0),
    "fp8_e5m2": FloatFormat(5, 2, 57344.0),
    "fp6_e3m2": FloatFormat(3, 2, 28.0),
    "fp6_e2m3": FloatFormat(2, 3, 7.5),
    "fp4_e2m1": FloatFormat(2, 1, 6.0),
    "int8": FloatFormat(0, 6, 127 / 64),
    "int4": FloatFormat(0, 2, 7 / 4),
    "int2": FloatFormat(0, 0, 1.0),
}


def half_away(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds to the nearest integer, halves away from zero. (floor(|x| + 1/2) would round 0.49999997 to 1.)"""
    whole = jnp.trunc(x)
    return jnp.where(jnp.abs(x - whole) >= 0.5, whole + jnp.sign(x), whole)


FLOAT_ROUNDINGS: dict[str, Callable[[Array], Array]] = {**ROUNDINGS, "half_away": half_away}


def round_to_float(
    x: Float[Array, "..."],
    exponent_bits: int,
    mantissa_bits: int,
    max_value: float,
    rounding: str = "half_even",
    noise: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """x rounded to a value of the format, saturating at ±max_value; exact in float32, NaN stays NaN.

    ``rounding`` is one of FLOAT_ROUNDINGS; ``noise``, uniform in [0, 1), replaces it by stochastic rounding.
    exponent_bits from 0 (fixed point) to 7, so that every spacing is a normal float32: smaller ones would be flushed.
    """
    if not 0 <= exponent_bits <= 7:
        raise ValueError(f"exponent_bits must be from 0 to 7, got {exponent_bits}")
    number = FloatFormat(exponent_bits, mantissa_bits, max_value)
    x = jnp.clip(x.astype(jnp.float32), -max_value, max_value)  # max_value is in the format, so clipping may come first
    step = _step(x, number)
    steps = x / step  # exact: step is a power of two
    rounded = FLOAT_ROUNDINGS[rounding](steps) if noise is None else stochastic_round(steps, noise)
    return rounded * step


def float_to_pattern(x: Float[Array, "..."], number: FloatFormat) -> Int[Array, "..."]:
    """The bits (sign, exponent, mantissa) of values that are in the format already, as int32. -0 is stored as +0."""
    exponent = _exponent(x, number)
    # Counting spacings from zero gives the pattern: 2^mantissa_bits of them per exponent, subnormals first.
    spacings = jnp.abs(x) / power_of_two(exponent - number.mantissa_bits)
    magnitude = spacings.astype(jnp.int32) + (exponent - number.min_exponent) * 2**number.mantissa_bits
    return magnitude + jnp.where(x < 0.0, 2 ** (number.bits - 1), 0)


def float_levels(number: FloatFormat) -> Float[Array, " patterns"]:
    """The value of every pattern 0 ... 2^bits - 1; infinity and NaN, which are never stored, hold ±max_value."""
    patterns = jnp.arange(2**number.bits)
    magnitude = patterns % 2 ** (number.bits - 1)
    exponent, fraction = magnitude // 2**number.mantissa_bits, magnitude % 2**number.mantissa_bits
    fraction = fraction + jnp.where(exponent > 0, 2**number.mantissa_bits, 0)
    spacing = power_of_two(jnp.maximum(exponent, 1) - 1 + number.min_exponent - number.mantissa_bits)
    values = jnp.minimum(fraction.astype(jnp.float32) * spacing, number.max_value)
    return jnp.where(patterns == magnitude, values, -values)


def floor_log2(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """floor(log2|x|) of normal float32 values, exactly: the exponent field. -127 for zero and subnormals."""
    field = jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.int32) >> 23
    return field - 127


def power_of_two(exponent: Int[Array, "..."]) -> Float[Array, "..."]:
    """2^exponent, exactly, for int32 exponents from -126 to 127: writes the exponent field."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _exponent(x: Array, number: FloatFormat) -> Array:
    return jnp.clip(floor_log2(x), number.min_exponent, number.max_exponent)


def _step(x: Array, number: FloatFormat) -> Array:
    """The spacing of the format's values around x."""
    return power_of_two(_exponent(x, number) - number.mantissa_bits)
