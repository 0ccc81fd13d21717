"""N2UQ: learned thresholds, anywhere, between levels that stay uniform."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.grid import clamp_bits, integer_range, scale_from_range
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.ratio import clipped_ratio
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.search import count_below
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.n2uq_weights import n2uq_weights
from qresearch.quantizers.require import require

MAX_WIDTH = 8  # the table has 2^8 - 1 interval lengths; wider widths use them all
SHORTEST = 1e-3  # of an interval, the authors' floor


class N2UQ(NamedTuple):
    """Of an input: where the first interval starts (x's rank, size 1) and the length of each [255], of which 2^bits - 1
    are used, both in units of input_scale; input_scale and the step of the levels, x's rank with ones on shared axes.
    """

    start: Float[Array, "..."]
    lengths: Float[Array, " 255"]
    input_scale: Float[Array, "..."]
    output_scale: Float[Array, "..."]


def n2uq(spec: QuantSpec, /) -> Quantizer:
    """Nonuniform-to-uniform quantization: x̂ = c #{i: v > T_i}, v = x / s, T_i = start + a_0 + ... + a_(i-1) + a_i / 2.

    Backward (the generalized straight-through estimator) the staircase is the broken line that rises by 1 over every
    interval a_i: ∂x̂/∂x = c / (s a_i) in the interval of v, ∂x̂/∂a_i = -c (v - its start) / a_i² there, -c / a_i for the
    intervals before it, 0 beyond the ends; c gets the count, s and start through v. Learned: start, a, s and c.
    A weight (signed) has a uniform grid that is not learned: ``n2uq_weights``.
    Liu et al., Nonuniform-to-Uniform Quantization: Towards Accurate Quantization via Generalized Straight-Through
    Estimation, 2022, https://arxiv.org/abs/2111.14826.
    s and c start at the step of ``spec.range`` (mse; the authors start from the range [0, 2]), a at 1 and start at 0:
    uniform rounding. Where we differ: s and c are per granularity, start and a per tensor, all of them learned (there
    they are per tensor), as magnitudes, floored above zero. Above 8 bits there are 256 levels.
    """
    require("n2uq", spec, "has no zero-point", symmetric=True, narrow=False)
    require("n2uq", spec, "learns where it rounds and how it clips", mask=None, rounding="half_even")
    if spec.signed:
        return n2uq_weights(spec)
    calibrate = RANGES[spec.range or "mse"]

    def init(x: Array, bits: Bits) -> N2UQ:
        low, high = calibrate(x, bits, spec.granularity.shared_axes(x.ndim), False, True, False)
        scale = scale_from_range(low, high, *integer_range(_width(bits), signed=False), symmetric=True)[0]
        start = jnp.zeros((1,) * x.ndim, jnp.float32)
        return N2UQ(start, jnp.ones(2**MAX_WIDTH - 1, jnp.float32), scale, scale)

    def intervals(qparams: N2UQ, bits: Bits) -> tuple[Array, Array, Array]:
        """Where the intervals in use begin (infinity for the others), where the last one ends, their lengths."""
        count = integer_range(_width(bits), signed=False)[1]
        used = jnp.arange(2**MAX_WIDTH - 1, dtype=jnp.float32) < count
        lengths = jnp.where(used, jnp.maximum(qparams.lengths, SHORTEST), 0.0)
        ends = qparams.start.reshape(1) + jnp.cumsum(lengths)
        begins = ends - lengths
        return jnp.where(used, begins, jnp.inf), ends[-1], jnp.where(used, lengths, 1.0)

    def codes_of(qparams: N2UQ, x: Array, bits: Bits) -> Array:
        begins, _, lengths = intervals(qparams, bits)
        v = in_steps(x, _positive(qparams.input_scale))
        return count_below(begins + lengths / 2.0, v)

    def encode(qparams: N2UQ, x: Array, bits: Bits) -> Codes:
        scale = _positive(qparams.output_scale)
        return Codes(codes_of(qparams, x, bits), scale, jnp.zeros_like(scale))

    def apply(qparams: N2UQ, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        codes = codes_of(stop_gradient(qparams), stop_gradient(x), bits).astype(jnp.float32)
        begins, end, lengths = intervals(qparams, bits)
        units = in_steps(stop_gradient(x), stop_gradient(_positive(qparams.input_scale)))
        inside = (units > begins[0]) & (units <= end)
        v = clipped_ratio(x, _positive(qparams.input_scale), begins[0], end)
        place = jnp.maximum(count_below(stop_gradient(begins), stop_gradient(v)) - 1, 0)
        line = place.astype(jnp.float32) + (v - begins[place]) / lengths[place]
        x_hat = straight_through(codes, line, inside.astype(jnp.float32)) * _positive(qparams.output_scale)
        return at_width(bits, x, x_hat.astype(x.dtype))

    learnable = ("start", "lengths", "input_scale", "output_scale")
    return Quantizer(init, apply, encode, learnable, frozenset({"spare_levels"}))


def _width(bits: Bits) -> Array:
    return jnp.minimum(jnp.floor(clamp_bits(bits)), MAX_WIDTH)


def _positive(scale: Array) -> Array:
    """|scale|, never zero: the gradient of the absolute value keeps pushing a negative one back."""
    return jnp.maximum(jnp.abs(scale), 1e-35)
