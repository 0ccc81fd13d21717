"""NormalFloat-4: sixteen levels at the quantiles of a normal distribution."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

# The probability of the last quantile in the authors' code. The text derives 1 - (1/32 + 1/30) / 2 = 0.96770833; the
# published levels need the rounded one.
LAST_QUANTILE = 0.9677083


class NF4(NamedTuple):
    """The value of the level 1 (the absmax of its block), of the view's rank with ones on shared axes."""

    scale: Float[Array, "..."]


def normal_float_levels(signed: bool) -> list[float]:
    """The sixteen levels, ascending, as Python floats: equal steps of probability on either side of an exact zero.

    signed: 7 below and 8 above zero, each side divided by the quantile that both end at, so that ±1 are levels.
    """
    above = _quantiles(9 if signed else 16)
    below = [-level for level in reversed(_quantiles(8)[1:])] if signed else []
    return below + above


def _quantiles(number: int) -> list[float]:
    """``number`` normal quantiles from probability 1/2 (which is 0) to LAST_QUANTILE, divided by the last."""
    step = (LAST_QUANTILE - 0.5) / (number - 1)
    last = NormalDist().inv_cdf(LAST_QUANTILE)
    return [NormalDist().inv_cdf(0.5 + i * step) / last if i < number - 1 else 1.0 for i in range(number)]


def nf4(spec: QuantSpec, /) -> Quantizer:
    """NormalFloat-4: x̂ = s * the nearest of 16 normal quantiles to x / s, s = max|x| of the block (``spec.range``).

    Meant for blocks: granularity per_group, of 64 weights in the paper. A tie goes to the lower level.
    ∂x̂/∂x = 1 where |x| <= s, 0 outside ("rounded" and "unrounded" agree: no level lies beyond ±1); mask "none": 1.
    Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023, https://arxiv.org/abs/2305.14314.
    Where we differ: the scales are float32 (no double quantization); unsigned tensors get 16 quantiles of the half
    normal instead of the 9 levels that are not negative. Four bits a value; ``bits`` is ignored.
    """
    require("nf4", spec, "has one scale and no zero-point", symmetric=True)
    require("nf4", spec, "stores the nearest level", rounding="half_even")
    calibrate = RANGES[spec.range or "minmax"]

    def codebook() -> Array:
        return jnp.asarray(normal_float_levels(spec.signed), jnp.float32)

    def nearest(x: Array, scale: Array) -> Array:
        levels = codebook()
        return jnp.searchsorted((levels[1:] + levels[:-1]) / 2.0, in_steps(x, scale), method="compare_all")

    def init(x: Array, bits: Bits) -> NF4:
        axes = spec.granularity.shared_axes(x.ndim)
        low, high = calibrate(x, 4.0, axes, spec.signed, spec.symmetric, spec.narrow)
        return NF4(jnp.maximum(jnp.maximum(-low, high), jnp.finfo(jnp.float32).tiny))

    def apply(qparams: NF4, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        value, scale = x.astype(jnp.float32), qparams.scale
        inside = (jnp.abs(value) <= scale) & (spec.signed | (value >= 0.0)) | (spec.mask == "none")
        quantized = codebook()[nearest(value, scale)] * scale
        x_hat = straight_through(quantized, value, inside.astype(jnp.float32))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: NF4, x: Array, bits: Bits) -> Codes:
        values = nearest(x, qparams.scale).astype(jnp.int32)
        return Codes(values, qparams.scale, jnp.zeros_like(qparams.scale), codebook())

    return Quantizer(init, apply, encode, width=4)
