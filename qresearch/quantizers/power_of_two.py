"""Uniform quantization whose scale is a power of two, so that hardware shifts where it would multiply."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.errors import did_you_mean
from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.formats import floor_log2
from qresearch.numerics.formats import power_of_two as exact_power
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, UnsupportedSpecError, at_width

# The mantissa above which a scale goes to the next power of two. sqrt(2): nearest in the logarithm.
TURNING = {"nearest": math.sqrt(2.0), "ceil": 1.0, "floor": 2.0}


class PowerOfTwo(NamedTuple):
    """The values that the grid is calibrated for: low and high, of x's rank with ones on shared axes."""

    low: Float[Array, "..."]
    high: Float[Array, "..."]


def power_of_two(spec: QuantSpec, /, *, exponent: str = "ceil") -> Quantizer:
    """Uniform quantization with s = 2^k: x̂ = s (clip(round(x / s) + z, qmin, qmax) - z), k = ⌈log2 s₀⌉.

    s₀ is the scale that covers the calibrated range (``spec.range``, min-max by default), z = round(qmin - low / s).
    ``exponent``: "ceil" never clips the range, and wastes up to half of the codes; "nearest" takes the nearest k, and
    clips up to 29 % of the range, which no bit repairs; "floor" clips up to half. One calibration serves every width.
    ∂s/∂s₀ = s / s₀, the straight-through estimator in the logarithm: only ``bits`` gets it, nothing is learned.
    Fixed-point formats; as a trained method: Jain et al., Trained Quantization Thresholds, 2020,
    https://arxiv.org/abs/1903.08066 (see ``tqt``, which rounds the threshold up instead of the scale).
    Default mask "rounded" and rounding half to even, as ``minmax``.
    """
    if exponent not in TURNING:
        raise UnsupportedSpecError(f"power_of_two: unknown exponent '{exponent}'{did_you_mean(exponent, TURNING)}")
    calibrate, mask = RANGES[spec.range or "minmax"], spec.mask or "rounded"

    def grid(qparams: PowerOfTwo, bits: Bits) -> tuple[Array, Array, Array, Array]:
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        scale, zero_point = scale_from_range(qparams.low, qparams.high, qmin, qmax, spec.symmetric)
        scale = nearest_power(scale, TURNING[exponent])
        if not spec.symmetric:
            zero_point = jnp.clip(jnp.round(qmin - jnp.minimum(qparams.low, 0.0) / scale), qmin, qmax)
        return scale, zero_point, qmin, qmax

    def init(x: Array, bits: Bits) -> PowerOfTwo:
        axes = spec.granularity.shared_axes(x.ndim)
        return PowerOfTwo(*calibrate(x, bits, axes, spec.signed, spec.symmetric, spec.narrow))

    def apply(qparams: PowerOfTwo, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        x_hat = fake_quant(x, *grid(qparams, bits), mask=mask, rounding=spec.rounding, key=key)
        return at_width(bits, x, x_hat)

    def encode(qparams: PowerOfTwo, x: Array, bits: Bits) -> Codes:
        return encode_uniform(x, *grid(qparams, bits), spec.rounding)

    return Quantizer(init, apply, encode)


def nearest_power(scale: Float[Array, "..."], turning: float) -> Float[Array, "..."]:
    """2^k, exactly, with k one more than floor(log2 scale) where scale / 2^floor is above ``turning``."""
    fixed = stop_gradient(scale)  # the slope is a constant: its derivative 1 / scale² is infinite for tiny scales
    whole = floor_log2(fixed)
    power = exact_power(jnp.minimum(whole + (fixed / exact_power(whole) > turning).astype(whole.dtype), 127))
    return straight_through(power, scale, power / fixed)
