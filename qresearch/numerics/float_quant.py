"""Fake quantization onto a scaled floating-point format, and the bit patterns that store it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from qresearch.numerics.codes import Codes
from qresearch.numerics.fake_quant import MASKS
from qresearch.numerics.formats import (
    FLOAT_ROUNDINGS,
    FloatFormat,
    float_levels,
    float_to_pattern,
    power_of_two,
    round_to_float,
)
from qresearch.numerics.rounding import in_steps, rounding_noise
from qresearch.numerics.straight_through import straight_through


def float_quant(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    number: FloatFormat,
    *,
    signed: bool = True,
    mask: str = "rounded",
    rounding: str = "half_even",
    key: PRNGKeyArray | Array | None = None,
) -> Float[Array, "..."]:
    """scale * (x / scale rounded to the format), saturating; negative values become 0 where not signed.

    The gradient in x is 1 where the result did not saturate, 0 elsewhere: ``mask`` "rounded" tests the rounded value,
    "unrounded" x / scale, "none" passes every gradient. The scale gets none: it is calibrated, not learned.
    Computed in float32; the result has the dtype of x. "stochastic" rounding needs a key, used for this tensor only.
    """
    if mask not in MASKS:
        raise ValueError(f"mask must be one of {MASKS}, got {mask!r}")
    if rounding != "stochastic" and rounding not in FLOAT_ROUNDINGS:
        raise ValueError(f"rounding must be 'stochastic' or one of {tuple(FLOAT_ROUNDINGS)}, got {rounding!r}")
    if rounding == "stochastic" and key is None:
        raise ValueError("rounding='stochastic' needs a key: pass key=jax.random.key(...)")
    noise = rounding_noise(key, x) if rounding == "stochastic" and key is not None else None
    value = x.astype(jnp.float32)
    units, scale = jax.lax.stop_gradient((_units(value, scale, signed), scale))
    quantized = round_to_float(units, *number, _stored(rounding), noise) * scale
    if mask == "rounded":  # as if the format went on beyond its largest value
        units = round_to_float(units, *number[:2], 2.0 * number.max_value, _stored(rounding), noise)
    inside = (jnp.abs(units) <= number.max_value) & (signed | (value >= 0.0)) | (mask == "none")
    return straight_through(quantized, value, inside.astype(jnp.float32)).astype(x.dtype)


def encode_float(
    x: Float[Array, "..."], scale: Float[Array, "..."], number: FloatFormat, signed: bool, rounding: str = "half_even"
) -> Codes:
    """The codes that decode to ``float_quant`` exactly: the format's bit patterns, with the codebook of their values.

    Fixed point is stored as the integers that it is, without a codebook. Stochastic rounding stores half to even.
    """
    rounded = round_to_float(_units(x, scale, signed), *number, _stored(rounding))
    zero = jnp.zeros_like(scale)
    if number.exponent_bits:
        return Codes(float_to_pattern(rounded, number), scale, zero, float_levels(number))
    step = power_of_two(jnp.int32(-number.mantissa_bits))
    return Codes((rounded / step).astype(jnp.int32), scale * step, zero)


def _units(x: Array, scale: Array, signed: bool) -> Array:
    units = in_steps(x, scale)
    return units if signed else jnp.maximum(units, 0.0)


def _stored(rounding: str) -> str:
    return "half_even" if rounding == "stochastic" else rounding
