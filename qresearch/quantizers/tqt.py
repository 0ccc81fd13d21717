"""TQT: the logarithm of a clipping threshold is learned, and the step is a power of two."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

SMALLEST = 2.0**-64  # threshold: with 31 bits below it, steps stay above the subnormal numbers, which become zero


class TQT(NamedTuple):
    """log2 of the threshold, of x's rank with ones on shared axes. It is a value of x, so it serves every width."""

    log2_threshold: Float[Array, "..."]


def tqt(spec: QuantSpec, /) -> Quantizer:
    """Trained quantization thresholds: x̂ = s clip(round(x / s), qmin, qmax), s = 2^⌈log2 t⌉ / 2^(b-1) (2^b unsigned).

    ∂x̂/∂log2 t = s ln 2 {round(x/s) - x/s inside, qmin below, qmax above}: the straight-through estimator for the
    ceiling too. ∂x̂/∂x = 1 where qmin <= round(x/s) <= qmax. The step is positive by construction.
    Jain et al., Trained Quantization Thresholds for Accurate and Efficient Fixed-Point Inference of Deep Neural
    Networks, 2020, https://arxiv.org/abs/1903.08066. The step jumps by 2 when log2 t passes an integer: the paper
    normalises the gradient (Adam does) and freezes thresholds late in training.
    Where we differ: the threshold starts from any ``spec.range`` (by default "mse"; the paper uses the maximum or three
    deviations for weights and KL for inputs). Default mask "rounded", as in the paper and its public code; rounding
    half to even, where some of its kernels round negative ties up.
    """
    require("tqt", spec, "has no zero-point", symmetric=True)
    mask = spec.mask or "rounded"

    def init(x: Array, bits: Bits) -> TQT:
        axes = spec.granularity.shared_axes(x.ndim)
        low, high = RANGES[spec.range or "mse"](x, bits, axes, spec.signed, True, spec.narrow)
        return TQT(jnp.log2(jnp.maximum(jnp.maximum(jnp.abs(low), jnp.abs(high)), SMALLEST)))

    def apply(qparams: TQT, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        scale = power_of_two_scale(qparams.log2_threshold, bits, spec.signed)
        x_hat = fake_quant(x, scale, 0.0, qmin, qmax, mask=mask, rounding=spec.rounding, key=key)
        return at_width(bits, x, x_hat)

    def encode(qparams: TQT, x: Array, bits: Bits) -> Codes:
        scale = power_of_two_scale(qparams.log2_threshold, bits, spec.signed)
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        return encode_uniform(x, scale, jnp.zeros_like(scale), qmin, qmax, spec.rounding)

    traits = frozenset({"passes_gradient"} if mask == "none" else ())
    return Quantizer(init, apply, encode, ("log2_threshold",), traits)


def power_of_two_scale(log2_threshold: Float[Array, "..."], bits: Bits, signed: bool) -> Float[Array, "..."]:
    """2^⌈log2 t⌉ over the levels on one side of zero: exactly a power of two at integer bits, of gradient s ln 2."""
    t, (qmin, qmax) = jnp.maximum(log2_threshold, math.log2(SMALLEST)), integer_range(bits, signed)
    power = jnp.ldexp(jnp.ones_like(t), jnp.ceil(t).astype(jnp.int32))
    slope = 1.0 + math.log(2.0) * (t - stop_gradient(t))  # exactly 1, with the derivative of 2^t
    return stop_gradient(power) * slope / (-qmin if signed else qmax + 1.0)
