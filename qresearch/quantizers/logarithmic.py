"""Logarithmic quantization: every level is a power of two."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.formats import floor_log2, power_of_two
from qresearch.numerics.grid import integer_range
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

MAX_WIDTH = 8.0  # bits; beyond, float32 has no further exponents
MIN_EXPONENT = -126  # of float32's normal numbers, and of a level below the largest one


class Logarithmic(NamedTuple):
    """The exponent of the largest positive level, a whole number; of x's rank with ones on shared axes."""

    exponent: Float[Array, "..."]


def logarithmic(spec: QuantSpec, /) -> Quantizer:
    """Powers of two and zero: x̂ = sign(x) 2^clip(round(log2|x|), k - n + 1, k), and 0 where |x| <= 2^(k - n).

    k is calibrated: round(log2) of the bound of the range (``spec.range``, min-max by default). n follows the bits: the
    code 0 is zero and every other code one exponent, so n = 2^(b-1) - 1 for signed tensors (the left-over code is
    -2^(k + 1), unless ``narrow``) and 2^b - 1 for unsigned ones, where negative values become 0. One calibration serves
    every width. Each bit doubles the number of octaves, and none makes an octave finer: the error stops falling when
    the smallest values have a level (trait "saturates"). No width has more than 127 exponents: below, x̂ = 0.
    ∂x̂/∂x = 1 up to the largest level: |x| <= 2^k for mask "unrounded", sqrt(2) times that for the default "rounded";
    "none" passes every gradient. ``bits`` gets none.
    Miyashita et al., Convolutional Neural Networks using Logarithmic Data Representation, 2016,
    https://arxiv.org/abs/1603.01025. Where we differ: they have no level zero but for x = 0, we use it where it is
    nearer than the smallest power (without it 2-bit weights would be ±2^k); k is per range instead of hand-picked.
    """
    require("logarithmic", spec, "has a zero of its own and no zero-point", symmetric=True)
    require("logarithmic", spec, "rounds the exponent to the nearest", rounding="half_even")
    calibrate = RANGES[spec.range or "minmax"]

    def limits(bits: Bits) -> tuple[Array, Array]:
        return integer_range(jnp.minimum(jnp.asarray(bits, jnp.float32), MAX_WIDTH), spec.signed, spec.narrow)

    def level(code: Array, count: Array) -> Array:
        """The value of a code, divided by the largest positive level 2^k."""
        exponent = jnp.abs(code) - count
        power = power_of_two(jnp.clip(exponent, MIN_EXPONENT, 1.0).astype(jnp.int32))
        return jnp.where((code == 0.0) | (exponent < MIN_EXPONENT), 0.0, jnp.sign(code) * power)

    def codes(qparams: Logarithmic, x: Array, bits: Bits) -> tuple[Array, Array]:
        """The codes, and the unclipped exponent of x above the largest positive level."""
        qmin, qmax = limits(bits)
        count = jnp.maximum(qmax, 1.0)
        over = nearest_exponent(x).astype(jnp.float32) - qparams.exponent
        nonzero = jnp.abs(x) > _power(qparams.exponent) * _power(jnp.maximum(-count, MIN_EXPONENT))
        rank = jnp.maximum(over + count, 1.0) * nonzero.astype(jnp.float32)
        return jnp.clip(jnp.sign(x) * rank, qmin, qmax), over

    def init(x: Array, bits: Bits) -> Logarithmic:
        low, high = calibrate(x, bits, spec.granularity.shared_axes(x.ndim), spec.signed, True, spec.narrow)
        exponent = nearest_exponent(jnp.maximum(-low, high))
        return Logarithmic(jnp.clip(exponent, MIN_EXPONENT, 126).astype(jnp.float32))

    def apply(qparams: Logarithmic, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        value, (qmin, qmax) = x.astype(jnp.float32), limits(bits)
        code, over = codes(qparams, value, bits)
        count = jnp.maximum(qmax, 1.0)
        quantized = level(code, count) * _power(qparams.exponent)
        side = jnp.where(value < 0.0, -qmin, qmax) - count  # 1 for the left-over code, else 0; -1 where there is none
        size = jnp.abs(value) * _power(-qparams.exponent)
        inside = {"none": jnp.ones_like(over, bool), "rounded": over <= side, "unrounded": size <= _power(side)}
        x_hat = straight_through(quantized, value, inside[spec.mask or "rounded"].astype(jnp.float32))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: Logarithmic, x: Array, bits: Bits) -> Codes:
        qmin, qmax = limits(bits)
        code, _ = codes(qparams, x.astype(jnp.float32), bits)
        every = jnp.minimum(jnp.arange(2.0**MAX_WIDTH, dtype=jnp.float32) + qmin, qmax)
        scale = _power(qparams.exponent)
        codebook = level(every, jnp.maximum(qmax, 1.0))
        return Codes((code - qmin).astype(jnp.int32), scale, jnp.zeros_like(scale), codebook)

    traits = {"saturates"} | ({"passes_gradient"} if spec.mask == "none" else set())
    return Quantizer(init, apply, encode, traits=frozenset(traits))


def nearest_exponent(x: Float[Array, "..."]) -> Array:
    """round(log2|x|) of normal float32 values as int32, exactly; -127 for zero and subnormal ones."""
    whole = floor_log2(x)
    mantissa = jnp.abs(x) / power_of_two(jnp.maximum(whole, MIN_EXPONENT))
    return whole + (mantissa > math.sqrt(2.0)).astype(jnp.int32)


def _power(exponent: Array) -> Array:
    return power_of_two(exponent.astype(jnp.int32))
