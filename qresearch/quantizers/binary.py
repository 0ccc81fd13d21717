"""Binary weights: the sign times the mean magnitude."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.magnitude import mean_magnitude
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require


class Binary(NamedTuple):
    """Scale and threshold, of x's rank with ones on shared axes; None where they follow the tensor (``dynamic``)."""

    scale: Float[Array, "..."] | None
    threshold: Float[Array, "..."] | None


def binary(spec: QuantSpec, /, *, clip: float = 1.0, dynamic: bool | None = None) -> Quantizer:
    """Binary weights (BWN, XNOR-Net): x̂ = s sign(x), s = mean|x|, the least-squares scale; sign(0) = 1.

    ∂x̂_j/∂x_i = s 1{|x_i| <= clip} [i = j] + sign(x_i) sign(x_j) / n: the straight-through estimator that is clipped at
    ±1 (weights are kept in [-1, 1] there; ``clip`` moves it, mask "none" removes it) and the derivative of the mean.
    Rastegari et al., XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks, 2016,
    https://arxiv.org/abs/1603.05279.
    ``dynamic``: the scale is that of the tensor at hand (weights in training; default where signed), else that of
    calibration (default where unsigned: a batch must not change the result of an example).
    Where we differ: unsigned tensors, all of one sign, get the levels 0 and s, split at Δ = 0.7 mean|x|, with s the
    mean above it, as in ternary weights. The codes are one bit a value; ``bits`` is ignored.
    """
    require("binary", spec, "has two levels and no zero-point", symmetric=True)
    require("binary", spec, "takes signs and means, no range and no rounding", range=None, rounding="half_even")
    follows = spec.signed if dynamic is None else dynamic
    traits = {"no_zero_level"} if spec.signed else set()
    traits |= {"calibrates_in_apply", "passes_gradient"} if follows else set()  # the mean has a gradient everywhere
    traits |= {"passes_gradient"} if spec.mask == "none" else set()
    lowest = -1.0 if spec.signed else 0.0

    def grid_of(x: Array) -> tuple[Array, Array]:
        axes = spec.granularity.shared_axes(x.ndim)
        if spec.signed:
            scale = mean_magnitude(x, axes)
            return scale, jnp.zeros_like(scale)
        x = jnp.maximum(x, 0.0)
        threshold = jnp.maximum(0.7 * mean_magnitude(x, axes), jnp.finfo(jnp.float32).tiny)
        return mean_magnitude(x, axes, x >= threshold), threshold

    def at(qparams: Binary, x: Array) -> tuple[Array, Array]:
        """The scale, and where x is on the upper level."""
        scale, threshold = qparams
        if scale is None or threshold is None:
            scale, threshold = grid_of(x)
        return scale, x >= threshold

    def init(x: Array, bits: Bits) -> Binary:
        return Binary(None, None) if follows else Binary(*grid_of(x.astype(jnp.float32)))

    def apply(qparams: Binary, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        value = x.astype(jnp.float32)
        scale, up = at(qparams, value)
        inside = (jnp.abs(value) <= clip) & (spec.signed | (value >= 0.0)) | (spec.mask == "none")
        x_hat = scale * straight_through(jnp.where(up, 1.0, lowest), value, inside.astype(jnp.float32))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: Binary, x: Array, bits: Bits) -> Codes:
        scale, up = at(qparams, x.astype(jnp.float32))
        return Codes(up.astype(jnp.int32), scale, jnp.zeros_like(scale), jnp.asarray([lowest, 1.0], jnp.float32))

    return Quantizer(init, apply, encode, traits=frozenset(traits), width=1)
