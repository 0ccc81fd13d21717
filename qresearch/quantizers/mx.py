"""MX: blocks of small floats or integers that share a power-of-two scale."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from qresearch.errors import did_you_mean
from qresearch.numerics.codes import Codes
from qresearch.numerics.float_quant import encode_float, float_quant
from qresearch.numerics.formats import FLOAT_ROUNDINGS, FORMATS, floor_log2, power_of_two
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, UnsupportedSpecError, at_width
from qresearch.quantizers.require import require


class MX(NamedTuple):
    """Nothing: the scale of a block is a function of the block."""


def mx(spec: QuantSpec, /, *, element: str = "fp8_e4m3", rounding: str | None = None) -> Quantizer:
    """Microscaling: x̂ = s element(x / s) with s = 2^(floor(log2 max|x|) - e), e the exponent of the largest element.

    A block is what shares a scale: granularity per_group(axis, 32) is the standard's, others are allowed. ``element``:
    fp8_e4m3, fp8_e5m2, fp6_e3m2, fp6_e2m3, fp4_e2m1, or the fixed-point int8, int4, int2 (±127/64, ±7/4, ±1).
    ∂x̂/∂x = 1 everywhere, as in the authors' code: saturation takes at most a quarter of a value (half for int2).
    Masks "rounded" and "unrounded" stop the gradient there.
    Rouhani et al., Microscaling Data Formats for Deep Learning, 2023, https://arxiv.org/abs/2310.10537, and the OCP
    Microscaling Formats (MX) Specification 1.0, 2023.
    ``rounding`` replaces ``spec.rounding`` (half_even). The authors' library calls half_away "nearest", half_even
    "even" and toward_zero "floor".
    Where we differ: the smallest scale is 2^-126 (fixed point: 2^-126 for its last bit), not 2^-127, because XLA may
    flush subnormal float32 numbers. Unsigned tensors lose their negative values. ``bits`` is ignored.
    """
    require("mx", spec, "has a scale and no zero-point", symmetric=True)
    require("mx", spec, "scales every block by its largest value", range=None)
    if element not in FORMATS:
        raise UnsupportedSpecError(f"mx: unknown element '{element}'{did_you_mean(element, FORMATS)}")
    rounds = rounding or spec.rounding
    if rounds != "stochastic" and rounds not in FLOAT_ROUNDINGS:
        raise UnsupportedSpecError(f"mx: unknown rounding '{rounds}'{did_you_mean(rounds, FLOAT_ROUNDINGS)}")
    number, mask = FORMATS[element], spec.mask or "none"
    smallest = -126 + (0 if number.exponent_bits else number.mantissa_bits)

    def scale_of(x: Array) -> Array:
        size = jnp.abs(x.astype(jnp.float32)) if spec.signed else jnp.maximum(x.astype(jnp.float32), 0.0)
        largest = jnp.max(size, axis=spec.granularity.shared_axes(x.ndim), keepdims=True)
        return power_of_two(jnp.maximum(floor_log2(largest) - number.max_exponent, smallest))

    def init(x: Array, bits: Bits) -> MX:
        return MX()

    def apply(qparams: MX, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        x_hat = float_quant(x, scale_of(x), number, signed=spec.signed, mask=mask, rounding=rounds, key=key)
        return at_width(bits, x, x_hat)

    def encode(qparams: MX, x: Array, bits: Bits) -> Codes:
        return encode_float(x, scale_of(x), number, spec.signed, rounds)

    traits = {"calibrates_in_apply"} | ({"passes_gradient"} if mask == "none" else set())
    return Quantizer(init, apply, encode, traits=frozenset(traits), width=number.bits)
