"""DSQ: a staircase of tanh steps, which training sharpens, stands behind the rounding."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

SOFTEST, SHARPEST = 0.9, 0.01  # alpha is kept between: a straight line at 1, a step at 0


class DSQ(NamedTuple):
    """The step, and what a soft step lacks of a sharp one: x's rank with ones on shared axes."""

    scale: Float[Array, "..."]
    alpha: Float[Array, "..."]


def soft_round(v: Float[Array, "..."], alpha: Float[Array, "..."]) -> Float[Array, "..."]:
    """⌊v⌋ + 1/2 + tanh(k (v - ⌊v⌋ - 1/2)) / (2 (1 - α)), k = log(2/α - 1): every integer is kept."""
    middle = jnp.floor(v) + 0.5
    return middle + 0.5 * jnp.tanh(jnp.log(2.0 / alpha - 1.0) * (v - middle)) / (1.0 - alpha)


def dsq(spec: QuantSpec, /, *, alpha: float = 0.4) -> Quantizer:
    """Differentiable soft quantization: x̂ = s round(φ(clip(x / s, qmin, qmax))), φ = ``soft_round``; s and α learned.

    The rounding passes its gradient: ∂x̂/∂x = φ'(x / s) inside, 0 where clipped; ∂x̂/∂s = round(v) - v φ'(v) inside, qmin
    or qmax outside; ∂x̂/∂α = s ∂φ/∂α. The smaller α, the sharper the step; the forward pass does not depend on it.
    Gong et al., Differentiable Soft Quantization: Bridging Full-Precision and Low-Bit Neural Networks, 2019,
    https://arxiv.org/abs/1908.05033. ``alpha`` is where α starts: MQBench's value, which keeps it fixed.
    Where we differ: a learned step on a symmetric integer grid stands for the paper's learned ends; α is clipped to
    [0.01, 0.9] and |s|, floored above zero, is used. A clipped x is one with x / s off the grid (mask "unrounded").
    """
    require("dsq", spec, "has no zero-point", symmetric=True)
    require("dsq", spec, "clips before it rounds to the nearest level", mask=None, rounding="half_even")
    calibrate = RANGES[spec.range or "minmax"]

    def grid(bits: Bits) -> tuple[Array, Array]:
        return integer_range(stop_gradient(jnp.asarray(bits, jnp.float32)), spec.signed, spec.narrow)

    def init(x: Array, bits: Bits) -> DSQ:
        low, high = calibrate(x, bits, spec.granularity.shared_axes(x.ndim), spec.signed, True, spec.narrow)
        scale = scale_from_range(low, high, *grid(bits), symmetric=True)[0]
        return DSQ(_positive(scale), jnp.full_like(scale, alpha))

    def apply(qparams: DSQ, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        value, (qmin, qmax) = x.astype(jnp.float32), grid(bits)
        scale = jnp.broadcast_to(_positive(qparams.scale), x.shape)
        alpha = jnp.broadcast_to(jnp.clip(qparams.alpha, SHARPEST, SOFTEST), x.shape)
        step, v = stop_gradient(scale), in_steps(stop_gradient(value), stop_gradient(scale))
        inside, v = (v >= qmin) & (v <= qmax), jnp.clip(v, qmin, qmax)
        in_v, in_alpha = _slopes(v, stop_gradient(alpha))
        codes, in_x = jnp.round(v), jnp.where(inside, in_v, 0.0)
        x_hat = straight_through(codes * step, value, in_x)
        x_hat = straight_through(x_hat, scale, codes - v * in_x)
        x_hat = straight_through(x_hat, alpha, step * in_alpha)
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: DSQ, x: Array, bits: Bits) -> Codes:
        scale = _positive(qparams.scale)
        return encode_uniform(x, scale, jnp.zeros_like(scale), *grid(bits))

    return Quantizer(init, apply, encode, ("scale", "alpha"))


def _slopes(v: Array, alpha: Array) -> tuple[Array, Array]:
    """The derivatives of ``soft_round`` in v and in alpha."""
    one, zero = jnp.ones_like(v), jnp.zeros_like(v)
    return tuple(jax.jvp(soft_round, (v, alpha), tangents)[1] for tangents in ((one, zero), (zero, one)))


def _positive(scale: Array) -> Array:
    """|scale|, never zero: the gradient of the absolute value keeps pushing a negative step back."""
    return jnp.maximum(jnp.abs(scale.astype(jnp.float32)), jnp.finfo(jnp.float32).tiny)
