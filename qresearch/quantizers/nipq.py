"""NIPQ: noise with the distribution of the true rounding error, a learned bit-width and a learned clipping value."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import clamp_bits, integer_range
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import in_steps, ste_round
from qresearch.numerics.search import count_below
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

BINS = 256  # of the histogram of rounding errors, over one step
SPAN = 12.0  # bits that the learned width can move over


class NIPQ(NamedTuple):
    """What training moves: alpha, the clipping value before its softplus, of x's rank with ones on shared axes; width,
    the learned part of the bit-width before its sigmoid, of x's rank and size 1.
    """

    alpha: Float[Array, "..."]
    width: Float[Array, "..."]


def learned_width(qparams: NIPQ, bits: Bits) -> Float[Array, ""]:
    """The real bit-width b = bits - 6 + 12 sigmoid(width), in [1, 31]; rounded where it is used."""
    return clamp_bits(bits + SPAN * (jax.nn.sigmoid(qparams.width.reshape(())) - 0.5))


def error_noise(
    key: PRNGKeyArray | Array, errors: Float[Array, "*s"], counted: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Independent draws, of the shape of ``errors``, from their histogram over [-1/2, 1/2] (256 bins, even inside one).

    errors: in steps. counted: 1 where one counts, else 0. If none does, the draws are uniform.
    """
    which, where = jax.random.split(key)
    bins = jnp.clip(jnp.floor((errors + 0.5) * BINS), 0, BINS - 1).astype(jnp.int32)
    weights = jnp.where(jnp.abs(errors) <= 0.5, counted, 0.0).reshape(-1)
    histogram = jax.ops.segment_sum(weights, bins.reshape(-1), BINS)
    upper = jnp.cumsum(jnp.where(jnp.sum(histogram) > 0.0, histogram, 1.0))
    drawn = count_below(upper, upper[-1] * jax.random.uniform(which, errors.shape), ties=True)
    place = jnp.minimum(drawn, BINS - 1).astype(jnp.float32) + jax.random.uniform(where, errors.shape)
    return place / BINS - 0.5


def nipq(spec: QuantSpec, /, *, jitter: bool = True) -> Quantizer:
    """Noise-injection pseudo quantization: x̂ = clip(x) + Δ e with a key, Δ round(clip(x) / Δ) without one.

    Δ = α / n, n = 2^(b-1) - 1 (signed) or 2^b - 1, clip to [-α, α] or [0, α]; α = softplus(.). e is drawn from the
    histogram of the true errors (Δ round(x / Δ) - x) / Δ of the elements that are not clipped, 256 bins over one step.
    b = bits - 6 + 12 sigmoid(.), rounded with a straight-through gradient, after U[-1/2, 1/2] is added (``jitter``).
    With a key ∂x̂/∂x = 1 inside; ∂x̂/∂α = e / n inside, ±1 where clipped; ∂x̂/∂b = e ∂Δ/∂b. Without one they are those of
    LSQ (mask "unrounded") and the bit-width gets none.
    Shin et al., NIPQ: Noise Proxy-based Integrated Pseudo-Quantization, 2023, https://arxiv.org/abs/2206.00820.
    α starts at the bound of ``spec.range`` (min-max by default). Where we differ: the authors' b = 2 + 12 sigmoid(.) is
    that for bits = 8, and is moved so that the learned part starts at 0 and ``bits`` still says the width; a gradient
    reaches ``bits`` too. A signed 1-bit grid is zero alone. Channels with their own α share one histogram.
    """
    require("nipq", spec, "has as many levels below zero as above", symmetric=True, narrow=False)
    require("nipq", spec, "clips before it rounds to the nearest level", mask=None, rounding="half_even")
    calibrate = RANGES[spec.range or "minmax"]

    def init(x: Array, bits: Bits) -> NIPQ:
        low, high = calibrate(x, bits, spec.granularity.shared_axes(x.ndim), spec.signed, True, False)
        bound = jnp.maximum(jnp.maximum(-low, high), 1e-30)
        alpha = bound + jnp.log(-jnp.expm1(-bound))  # the inverse of softplus
        return NIPQ(alpha, jnp.zeros((1,) * x.ndim, jnp.float32))

    def grid(qparams: NIPQ, width: Array) -> tuple[Array, Array, Array, Array]:
        """The step, the zero-point 0, and the codes of either end."""
        qmax = integer_range(width, spec.signed)[1]
        step = jnp.maximum(in_steps(jax.nn.softplus(qparams.alpha), jnp.maximum(qmax, 1.0)), 1e-37)
        return step, jnp.zeros_like(step), -qmax if spec.signed else jnp.zeros_like(qmax), qmax

    def nearest(qparams: NIPQ, bits: Bits) -> tuple[Array, Array, Array, Array]:
        return grid(qparams, stop_gradient(jnp.round(learned_width(qparams, bits))))

    def apply(qparams: NIPQ, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        if key is None:
            return at_width(bits, x, fake_quant(x, *nearest(qparams, bits), mask="unrounded"))
        return at_width(bits, x, noisy(qparams, x.astype(jnp.float32), bits, key).astype(x.dtype))

    def noisy(qparams: NIPQ, x: Array, bits: Bits, key: Array) -> Array:
        move, draw = jax.random.split(key)
        width = learned_width(qparams, bits) + (jax.random.uniform(move) - 0.5 if jitter else 0.0)
        step, zero_point, qmin, qmax = grid(qparams, ste_round(width))
        alpha = jnp.broadcast_to(jax.nn.softplus(qparams.alpha), x.shape)
        above, below = x >= alpha, x <= (-alpha if spec.signed else 0.0)
        fixed = stop_gradient(x)
        error = in_steps(stop_gradient(fake_quant(fixed, step, zero_point, qmin, qmax)) - fixed, stop_gradient(step))
        noise = error_noise(draw, error, (~(above | below)).astype(jnp.float32))
        return jnp.where(above, alpha, jnp.where(below, -alpha if spec.signed else 0.0, x + noise * step))

    def encode(qparams: NIPQ, x: Array, bits: Bits) -> Codes:
        return encode_uniform(x, *nearest(qparams, bits))

    return Quantizer(init, apply, encode, ("alpha", "width"), frozenset({"needs_key"}))
