"""Look-up quantization: equal bins, each decoded to its middle."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

MAX_WIDTH = 20.0  # bits; the middles of finer bins are no float32 numbers, and an element would move at every call


class Midpoint(NamedTuple):
    """The ends of the first and last bin: low and high, of x's rank with ones on shared axes."""

    low: Float[Array, "..."]
    high: Float[Array, "..."]


def midpoint(spec: QuantSpec, /) -> Quantizer:
    """2^b equal bins between low and high, decoded to their middles: x̂ = low + (bin + 1/2) Δ, Δ = (high - low) / 2^b.

    The mid-rise uniform quantizer; at 4 bits the 16-bin look-up quantizer of field guides. The range is calibrated
    (``spec.range``, min-max by default) and serves every width; symmetric specs mirror it. No element inside it moves
    by more than Δ / 2, and there is no level zero. ACIQ's ranges are derived for this grid, "mse" fits one with a zero.
    ∂x̂/∂x = 1 inside the range, 0 outside (default mask "rounded"; "unrounded" ends at the outermost middles); ∂x̂/∂Δ as
    in ``fake_quant``, so that ``bits`` has its gradient; nothing is learned.
    Max, Quantizing for Minimum Distortion, 1960, https://doi.org/10.1109/TIT.1960.1057548 (its equal-step case).
    Where we differ: an element on an edge goes to the even one of two bins (rounding half to even), and ranges contain
    zero; no grid is finer than 20 bits. Codes have the zero-point qmin - 1/2 - low / Δ, which is no whole number.
    """
    require("midpoint", spec, "uses all of its 2^b bins", narrow=False)
    calibrate, mask = RANGES[spec.range or "minmax"], spec.mask or "rounded"

    def grid(qparams: Midpoint, bits: Bits) -> tuple[Array, Array, Array, Array]:
        """Δ, the value of code 0, and the smallest and largest code."""
        qmin, qmax = integer_range(jnp.minimum(bits, MAX_WIDTH), spec.signed)
        low, high = qparams
        if spec.symmetric:
            high = jnp.maximum(jnp.abs(low), jnp.abs(high))
            low = -high if spec.signed else jnp.zeros_like(high)
        step = jnp.maximum((high - low) / (qmax - qmin + 1.0), jnp.finfo(jnp.float32).tiny)
        return step, low + (0.5 - qmin) * step, qmin, qmax

    def init(x: Array, bits: Bits) -> Midpoint:
        axes = spec.granularity.shared_axes(x.ndim)
        return Midpoint(*calibrate(x, bits, axes, spec.signed, spec.symmetric, spec.narrow))

    def apply(qparams: Midpoint, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        step, middle, qmin, qmax = grid(qparams, bits)
        shifted = x.astype(jnp.float32) - middle
        multiple = fake_quant(shifted, step, 0.0, qmin, qmax, mask=mask, rounding=spec.rounding, key=key)
        code = jnp.round(in_steps(multiple, step))
        value = (code - _zero_point(step, middle)) * step  # what ``decode`` computes, bit for bit
        x_hat = straight_through(stop_gradient(value), multiple + middle, jnp.ones_like(value))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: Midpoint, x: Array, bits: Bits) -> Codes:
        step, middle, qmin, qmax = grid(qparams, bits)
        codes = encode_uniform(x.astype(jnp.float32) - middle, step, jnp.zeros_like(step), qmin, qmax, spec.rounding)
        return codes._replace(zero_point=_zero_point(step, middle))

    return Quantizer(init, apply, encode, traits=frozenset({"no_zero_level"}))


def _zero_point(step: Array, middle: Array) -> Array:
    return -middle / step
