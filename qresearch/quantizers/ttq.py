"""Trained ternary quantization: the positive and the negative level are learned."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.granularity import PER_TENSOR
from qresearch.numerics.magnitude import mean_magnitude
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require


class TTQ(NamedTuple):
    """The two levels, and the threshold between them and zero (None where it follows the tensor): rank of x, size 1."""

    positive: Float[Array, "..."]
    negative: Float[Array, "..."] | None  # its magnitude; None for unsigned tensors, which have no such level
    threshold: Float[Array, "..."] | None


def ttq(spec: QuantSpec, /, *, threshold: float = 0.05, dynamic: bool | None = None) -> Quantizer:
    """Trained Ternary Quantization: x̂ = p where x > Δ, -n where x < -Δ, 0 between; Δ = 0.05 max|x|, p and n learned.

    ∂x̂/∂p = 1{x > Δ}, ∂x̂/∂n = -1{x < -Δ}; ∂x̂/∂x = p, 1 or n above, between and below: the paper's scaled gradient.
    Zhu, Han, Mao and Dally, Trained Ternary Quantization, 2017, https://arxiv.org/abs/1612.01064.
    p and n start as the means of what they replace; |p| and |n|, floored above zero, are used, because plain SGD can
    push them through it. ``threshold`` replaces 0.05. ``dynamic``: Δ is that of the tensor at hand (weights in
    training; default where signed), else that of calibration.
    Where we differ: x is not divided by max|x| first; unsigned tensors have the levels 0 and p only. One pair of levels
    for a tensor, as in the paper: channels and groups are refused. Two bits a value; ``bits`` is ignored.
    """
    require("ttq", spec, "has three levels, zero among them", symmetric=True)
    require("ttq", spec, "learns one pair of levels for a tensor", granularity=PER_TENSOR)
    require("ttq", spec, "takes thresholds and means, no range and no rounding", range=None, rounding="half_even")
    require("ttq", spec, "defines the gradient of x itself", mask=None)
    follows = spec.signed if dynamic is None else dynamic

    def regions(x: Array, delta: Array | None) -> tuple[Array, Array, Array]:
        """The threshold, and where x is above and below it."""
        x = jax.lax.stop_gradient(x.astype(jnp.float32))
        delta = threshold * jnp.max(jnp.abs(x), keepdims=True) if delta is None else delta
        return delta, x > delta, (x < -delta) & spec.signed

    def init(x: Array, bits: Bits) -> TTQ:
        delta, above, below = regions(x, None)
        axes = tuple(range(x.ndim))
        negative = mean_magnitude(x, axes, below) if spec.signed else None
        return TTQ(mean_magnitude(x, axes, above), negative, None if follows else delta)

    def levels(qparams: TTQ) -> tuple[Array, Array]:
        positive = _positive(qparams.positive)
        return positive, jnp.zeros_like(positive) if qparams.negative is None else _positive(qparams.negative)

    def apply(qparams: TTQ, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        _, above, below = regions(x, qparams.threshold)
        positive, negative = levels(qparams)
        quantized = jnp.where(above, positive, jnp.where(below, -negative, 0.0))
        slope = jax.lax.stop_gradient(jnp.where(above, positive, jnp.where(below, negative, 1.0)))
        return at_width(bits, x, straight_through(quantized, x.astype(jnp.float32), slope).astype(x.dtype))

    def encode(qparams: TTQ, x: Array, bits: Bits) -> Codes:
        _, above, below = regions(x, qparams.threshold)
        positive, negative = levels(qparams)
        codebook = jnp.concatenate([-negative.reshape(1), jnp.zeros(1, jnp.float32), positive.reshape(1)])
        one = jnp.ones_like(positive)
        return Codes(1 + above.astype(jnp.int32) - below.astype(jnp.int32), one, 0.0 * one, codebook)

    learnable = ("positive", "negative") if spec.signed else ("positive",)
    return Quantizer(init, apply, encode, learnable, frozenset({"passes_gradient"}), width=2)


def _positive(level: Array) -> Array:
    return jnp.maximum(jnp.abs(level), 1e-12)
