"""Uniform quantization of a fixed range: the range is calibrated, then kept."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width


class MinMax(NamedTuple):
    """The values that the grid covers: low and high, of x's rank with ones on shared axes."""

    low: Float[Array, "..."]
    high: Float[Array, "..."]


def minmax(spec: QuantSpec, /) -> Quantizer:
    """Affine or symmetric integer quantization of a calibrated range (``spec.range``, min-max by default).

    x̂ = s (clip(round(x / s) + z, qmin, qmax) - z), with s and z from the range and the bits by ``scale_from_range``.
    The range does not depend on the width, so one calibration serves every width (an MSE range is best at its own).
    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018,
    https://arxiv.org/abs/1712.05877. Nothing is learned; the default mask is "rounded", as in torch.
    """
    calibrate = RANGES[spec.range or "minmax"]
    mask = spec.mask or "rounded"

    def grid(qparams: MinMax, bits: Bits) -> tuple[Array, Array, Array, Array]:
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        return (*scale_from_range(qparams.low, qparams.high, qmin, qmax, spec.symmetric), qmin, qmax)

    def init(x: Array, bits: Bits) -> MinMax:
        axes = spec.granularity.shared_axes(x.ndim)
        return MinMax(*calibrate(x, bits, axes, spec.signed, spec.symmetric, spec.narrow))

    def apply(qparams: MinMax, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        x_hat = fake_quant(x, *grid(qparams, bits), mask=mask, rounding=spec.rounding, key=key)
        return at_width(bits, x, x_hat)

    def encode(qparams: MinMax, x: Array, bits: Bits) -> Codes:
        return encode_uniform(x, *grid(qparams, bits), spec.rounding)

    return Quantizer(init, apply, encode)
