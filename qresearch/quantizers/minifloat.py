"""Small floating-point formats with a calibrated scale: fp8, fp6 and fp4."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.float_quant import encode_float, float_quant
from qresearch.numerics.formats import FORMATS
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require


class MiniFloat(NamedTuple):
    """The scale, of x's rank with ones on shared axes: the calibrated bound divided by the format's largest value."""

    scale: Float[Array, "..."]


def fp8_e4m3(spec: QuantSpec, /) -> Quantizer:
    """8-bit floats of 4 exponent and 3 mantissa bits, up to 448, no infinity: for weights and activations.

    x̂ = s float(x / s), s = max|x| / 448 (``spec.range``); ``_minifloat`` says the gradient and what else is shared.
    Micikevicius et al., FP8 Formats for Deep Learning, 2022, https://arxiv.org/abs/2209.05433.
    """
    return _minifloat("fp8_e4m3", spec)


def fp8_e5m2(spec: QuantSpec, /) -> Quantizer:
    """8-bit floats of 5 exponent and 2 mantissa bits, up to 57344: more range, less precision; meant for gradients.

    x̂ = s float(x / s), s = max|x| / 57344 (``spec.range``); ``_minifloat`` says the gradient and what else is shared.
    Micikevicius et al., FP8 Formats for Deep Learning, 2022, https://arxiv.org/abs/2209.05433.
    """
    return _minifloat("fp8_e5m2", spec)


def fp6_e3m2(spec: QuantSpec, /) -> Quantizer:
    """6-bit floats of 3 exponent and 2 mantissa bits, up to 28.

    x̂ = s float(x / s), s = max|x| / 28 (``spec.range``); ``_minifloat`` says the gradient and what else is shared.
    Rouhani et al., Microscaling Data Formats for Deep Learning, 2023, https://arxiv.org/abs/2310.10537.
    """
    return _minifloat("fp6_e3m2", spec)


def fp6_e2m3(spec: QuantSpec, /) -> Quantizer:
    """6-bit floats of 2 exponent and 3 mantissa bits, up to 7.5.

    x̂ = s float(x / s), s = max|x| / 7.5 (``spec.range``); ``_minifloat`` says the gradient and what else is shared.
    Rouhani et al., Microscaling Data Formats for Deep Learning, 2023, https://arxiv.org/abs/2310.10537.
    """
    return _minifloat("fp6_e2m3", spec)


def fp4_e2m1(spec: QuantSpec, /) -> Quantizer:
    """4-bit floats of 2 exponent bits and 1 mantissa bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

    x̂ = s float(x / s), s = max|x| / 6 (``spec.range``); ``_minifloat`` says the gradient and what else is shared.
    Rouhani et al., Microscaling Data Formats for Deep Learning, 2023, https://arxiv.org/abs/2310.10537.
    """
    return _minifloat("fp4_e2m1", spec)


def _minifloat(name: str, spec: QuantSpec) -> Quantizer:
    """x̂ = s float(x / s): rounded to the format, subnormals included, saturating; negative values 0 where unsigned.

    ∂x̂/∂x = 1 where x̂ did not saturate, else 0 (the default mask, "rounded", as minmax has it). The scale is calibrated,
    not learned; a range that is searched for an integer grid ("mse") is that grid's best at the format's width.
    Half to even by default, as hardware casts and ml_dtypes do. ``bits`` is ignored: the format is the width.
    The codes are the format's own bit patterns.
    """
    require(name, spec, "has a scale and no zero-point", symmetric=True)
    number, calibrate, mask = FORMATS[name], RANGES[spec.range or "minmax"], spec.mask or "rounded"

    def init(x: Array, bits: Bits) -> MiniFloat:
        axes = spec.granularity.shared_axes(x.ndim)
        low, high = calibrate(x, float(number.bits), axes, spec.signed, spec.symmetric, spec.narrow)
        # Never zero, so that a tensor of zeros is divided by something.
        return MiniFloat(jnp.maximum(jnp.maximum(-low, high) / number.max_value, jnp.finfo(jnp.float32).tiny))

    def apply(qparams: MiniFloat, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        x_hat = float_quant(x, qparams.scale, number, signed=spec.signed, mask=mask, rounding=spec.rounding, key=key)
        return at_width(bits, x, x_hat)

    def encode(qparams: MiniFloat, x: Array, bits: Bits) -> Codes:
        return encode_float(x, qparams.scale, number, spec.signed, spec.rounding)

    return Quantizer(init, apply, encode, width=number.bits)
