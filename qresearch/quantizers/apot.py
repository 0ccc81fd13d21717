"""APoT: levels that are sums of powers of two, dense around zero, with a learned clipping value."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.errors import GraphError, did_you_mean
from qresearch.numerics.codes import Codes, decode
from qresearch.numerics.grid import clamp_bits, integer_range
from qresearch.numerics.kmeans import thresholds
from qresearch.numerics.moments import mean_and_deviation, root_mean_square
from qresearch.numerics.power_levels import LEVEL_SETS, MAX_WIDTH, level_table
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.search import count_below
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, UnsupportedSpecError, at_width
from qresearch.quantizers.require import require


class APoT(NamedTuple):
    """The clipping value, of x's rank with ones on shared axes; of the normalised weight, where that is quantized."""

    alpha: Float[Array, "..."]


def apot(spec: QuantSpec, /, *, levels: str = "additive", normalize: bool | None = None) -> Quantizer:
    """Additive powers of two: x̂ = α sign(v) Π(min(|v|, 1)), v = w̃ / α, w̃ = (w - mean) / deviation, α learned.

    Π is the nearest level, the lower one at a tie. ``levels``: "additive" and "power_of_two" (see ``power_levels``), or
    "uniform", round(n v) / n. A weight of b bits has b - 1 of magnitude (2: -α, 0, α; 1: 0 alone); an input, which is
    not normalised, has b. The tables end at 8 bits of magnitude: wider ones use those, "uniform" goes on.
    ∂x̂/∂α = sign(v) where |v| > 1, else Π(v) - v. ∂x̂/∂w̃ = 1 for weights, clipped ones too; 1{0 <= v <= 1} for inputs
    (mask "none" and "unrounded" choose); mean and deviation are constants to it.
    Li, Dong and Wang, Additive Powers-of-Two Quantization: An Efficient Non-uniform Discretization for Neural Networks,
    2020, https://arxiv.org/abs/1909.13144. α starts at 3 for weights, 3 sqrt(E x²) for inputs (the authors: 8), or at
    ``spec.range``. Where we differ: mean and deviation are those of the elements that share α (there: of the layer);
    |α|, floored above zero, is used. ``normalize`` False quantizes w itself, for networks that were trained without it.
    """
    if levels not in (*LEVEL_SETS, "uniform"):
        raise GraphError(f"apot has no levels '{levels}'{did_you_mean(levels, (*LEVEL_SETS, 'uniform'))}")
    require("apot", spec, "has levels of either sign and no zero-point", symmetric=True, narrow=False)
    require("apot", spec, "projects on the nearest level", rounding="half_even")
    mask = spec.mask or ("none" if spec.signed else "unrounded")
    if mask == "rounded":
        raise UnsupportedSpecError("apot clips before it projects: got mask 'rounded', expected 'unrounded' or 'none'")
    normalizes = spec.signed if normalize is None else normalize
    lowest = -1.0 if spec.signed else 0.0

    def seen(x: Array) -> Array:
        x = x.astype(jnp.float32)
        if not normalizes:
            return x
        mean, deviation = mean_and_deviation(x, spec.granularity.shared_axes(x.ndim))
        return (x - mean) / deviation

    def init(x: Array, bits: Bits) -> APoT:
        x, axes = seen(x), spec.granularity.shared_axes(x.ndim)
        if spec.range is not None:
            low, high = RANGES[spec.range](x, bits, axes, spec.signed, True, False)
            return APoT(_positive(jnp.maximum(-low, high)))
        root = root_mean_square(x, axes)
        return APoT(_positive(jnp.full_like(root, 3.0) if normalizes else 3.0 * root))

    def project(v: Array, alpha: Array, bits: Bits) -> Codes:
        """The codes of v in [-1, 1]."""
        zero_point = jnp.zeros_like(alpha)
        if levels == "uniform":
            qmax = integer_range(bits, spec.signed)[1]
            return Codes(jnp.round(v * qmax).astype(jnp.int32), in_steps(alpha, jnp.maximum(qmax, 1.0)), zero_point)
        width = jnp.minimum(jnp.floor(clamp_bits(bits)) - float(spec.signed), MAX_WIDTH).astype(jnp.int32)
        magnitudes = jnp.asarray(level_table(levels))[width]
        nearest = count_below(thresholds(magnitudes, 1 << width), jnp.abs(v))
        if not spec.signed:
            return Codes(nearest, alpha, zero_point, magnitudes)
        zero = (1 << width) - 1  # the place of level 0 in the codebook: as many levels are below it
        place = jnp.arange(2 ** (MAX_WIDTH + 1) - 1) - zero
        magnitude = magnitudes[jnp.minimum(jnp.abs(place), 2**MAX_WIDTH - 1)]
        codebook = jnp.where(place < 0, -magnitude, magnitude)
        return Codes(zero + jnp.sign(v).astype(jnp.int32) * nearest, alpha, zero_point, codebook)

    def encode(qparams: APoT, x: Array, bits: Bits) -> Codes:
        alpha = _positive(qparams.alpha)
        return project(jnp.clip(in_steps(seen(x), alpha), lowest, 1.0), alpha, bits)

    def apply(qparams: APoT, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        value, alpha = seen(x), _positive(qparams.alpha)
        quantized = stop_gradient(decode(encode(qparams, x, bits)))
        v, level = (in_steps(part, stop_gradient(alpha)) for part in (stop_gradient(value), quantized))
        clipped = jnp.clip(v, lowest, 1.0)
        in_alpha = jnp.where(clipped == v, level - v, clipped)
        in_x = jnp.where((clipped == v) | (mask == "none"), 1.0, 0.0)
        x_hat = straight_through(quantized, value, in_x)
        x_hat = straight_through(x_hat, jnp.broadcast_to(alpha, x.shape), in_alpha)
        return at_width(bits, x, x_hat.astype(x.dtype))

    traits = {"passes_gradient"} if mask == "none" else set()
    traits |= {"rescales", "not_idempotent", "no_zero_level"} if normalizes else set()
    return Quantizer(init, apply, encode, ("alpha",), frozenset(traits))


def _positive(alpha: Array) -> Array:
    """|alpha|, never zero: the gradient of the absolute value keeps pushing a negative one back."""
    return jnp.maximum(jnp.abs(alpha.astype(jnp.float32)), jnp.finfo(jnp.float32).tiny)
