"""QIL: the interval of magnitudes that is worth quantizing is learned; below it is pruned, above it is clipped."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import in_steps
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require


class QIL(NamedTuple):
    """The interval [center - distance, center + distance] and the exponent, of x's rank with ones on shared axes."""

    center: Float[Array, "..."]
    distance: Float[Array, "..."]
    gamma: Float[Array, "..."]


def qil(spec: QuantSpec, /, *, learn_gamma: bool = False, multiply_back: bool = True) -> Quantizer:
    """Quantization interval learning: w̃ = sign(w) clip(a |w| + e, 0, 1)^γ, a = 1 / 2D, e = (D - C) / 2D; x̂ rounds w̃.

    Magnitudes below C - D become 0, above C + D become 1, and 2^(b-1) - 1 steps (2^b - 1 unsigned, negative values
    become 0) divide what lies between. Gradients are those of the transformation, with the straight-through
    estimator for the rounding: none to x, C, D or γ below and above the interval.
    Jung et al., Learning to Quantize Deep Networks by Optimizing Quantization Intervals with Task Loss, 2019,
    https://arxiv.org/abs/1808.05779.
    Where we differ: the output is multiplied by C + D (differentiably), so that it approximates x and the network needs
    no normalisation after it; ``multiply_back=False`` is the paper's. It starts from the interval [0, bound] of
    ``spec.range`` (by default "mse"), which prunes nothing; only there does quantizing twice change nothing. γ is 1
    unless ``learn_gamma``: the paper learns it for weights, MQBench reports that it did not converge. |C|, |D| and |γ|
    are used, D and γ floored above zero. The mask is the transformer's own clip; rounding half to even.
    """
    require("qil", spec, "quantizes magnitudes in an interval, which is its mask", symmetric=True, mask=None)

    def init(x: Array, bits: Bits) -> QIL:
        axes = spec.granularity.shared_axes(x.ndim)
        low, high = RANGES[spec.range or "mse"](x, bits, axes, spec.signed, True, spec.narrow)
        half = jnp.maximum(jnp.abs(low), jnp.abs(high)) / 2.0
        return QIL(half, half, jnp.ones_like(half))

    def transform(qparams: QIL, x: Array, bits: Bits) -> tuple[Array, Array, Array, Array]:
        """w̃ times the largest output, and the grid that rounds it: step, qmin, qmax."""
        center, distance = jnp.abs(qparams.center), jnp.maximum(jnp.abs(qparams.distance), 1e-12)
        x = x.astype(center.dtype)
        magnitude = jnp.abs(x) if spec.signed else x
        above = magnitude - (center - distance)
        inside = (above > 0.0) & (magnitude < center + distance)
        largest = center + distance if multiply_back else jnp.ones_like(center)
        level = above * (largest / (2.0 * distance))
        if learn_gamma:  # a power of 0 has an infinite gradient for γ < 1, so outside elements take another base
            level = jnp.where(inside, above / (2.0 * distance), 0.5) ** _positive(qparams.gamma) * largest
        level = jnp.where(inside, level, jnp.where(above > 0.0, largest, 0.0))
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        step = in_steps(largest, jnp.where(qmax >= 1.0, qmax, 1.0))
        return jnp.sign(x) * level if spec.signed else level, step, qmin, qmax

    def apply(qparams: QIL, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        transformed, step, qmin, qmax = transform(qparams, x, bits)
        x_hat = fake_quant(transformed, step, 0.0, qmin, qmax, mask="none", rounding=spec.rounding, key=key)
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: QIL, x: Array, bits: Bits) -> Codes:
        transformed, step, qmin, qmax = transform(qparams, x, bits)
        return encode_uniform(transformed, step, jnp.zeros_like(step), qmin, qmax, spec.rounding)

    traits: frozenset[str] = frozenset() if multiply_back else frozenset({"not_idempotent", "rescales"})
    return Quantizer(init, apply, encode, ("center", "distance", *["gamma"] * learn_gamma), traits)


def _positive(gamma: Array) -> Array:
    return jnp.maximum(jnp.abs(gamma), 1e-3)
