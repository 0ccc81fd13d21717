"""Ternary weights: zero below a threshold, the mean of the others above."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, decode
from qresearch.numerics.magnitude import mean_magnitude
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

_REACH = {None: jnp.inf, "none": jnp.inf, "rounded": 1.5, "unrounded": 1.0}  # |x| / s up to which x gets a gradient


class Ternary(NamedTuple):
    """Scale and threshold, of x's rank with ones on shared axes; None where they follow the tensor (``dynamic``)."""

    scale: Float[Array, "..."] | None
    threshold: Float[Array, "..."] | None


def ternary(spec: QuantSpec, /, *, threshold: float = 0.7, dynamic: bool | None = None) -> Quantizer:
    """Ternary weights (TWN): x̂ = s sign(x) 1{|x| > Δ}, Δ = 0.7 mean|x|, s the mean of the |x| above Δ.

    s is the least-squares scale for the kept elements; Δ approximates the best threshold (``threshold`` replaces 0.7).
    ∂x̂/∂x = 1 everywhere, the plain straight-through estimator: s and Δ are constants to it, as in the paper. A mask
    "rounded" or "unrounded" passes it up to |x| = 1.5 s or s only.
    Li, Zhang and Liu, Ternary Weight Networks, 2016, https://arxiv.org/abs/1605.04711.
    ``dynamic``: s and Δ are those of the tensor at hand (weights in training; default where signed), else those of
    calibration (default where unsigned). Where we differ: on unsigned tensors the rule leaves the levels 0 and s.
    The codes are -1, 0, 1: two bits a value; ``bits`` is ignored.
    """
    require("ternary", spec, "has three levels around zero", symmetric=True)
    require("ternary", spec, "takes thresholds and means, no range and no rounding", range=None, rounding="half_even")
    follows = spec.signed if dynamic is None else dynamic
    traits = {"calibrates_in_apply"} if follows else set()
    traits |= {"passes_gradient"} if spec.mask in (None, "none") else set()

    def grid_of(x: Array) -> tuple[Array, Array]:
        axes = spec.granularity.shared_axes(x.ndim)
        delta = threshold * mean_magnitude(x, axes)
        return mean_magnitude(x, axes, jnp.abs(x) > delta), delta

    def seen(x: Array) -> Array:
        return x.astype(jnp.float32) if spec.signed else jnp.maximum(x.astype(jnp.float32), 0.0)

    def init(x: Array, bits: Bits) -> Ternary:
        return Ternary(None, None) if follows else Ternary(*grid_of(seen(x)))

    def encode(qparams: Ternary, x: Array, bits: Bits) -> Codes:
        x, (scale, delta) = seen(x), qparams
        if scale is None or delta is None:
            scale, delta = grid_of(x)
        values = jnp.where(jnp.abs(x) > delta, jnp.sign(x), 0.0)
        return Codes(values.astype(jnp.int32), scale, jnp.zeros_like(scale))

    def apply(qparams: Ternary, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        codes = jax.lax.stop_gradient(encode(qparams, x, bits))
        value = x.astype(jnp.float32)
        slope = (jnp.abs(value) <= _REACH[spec.mask] * codes.scale).astype(jnp.float32)
        return at_width(bits, x, straight_through(decode(codes), value, slope).astype(x.dtype))

    return Quantizer(init, apply, encode, traits=frozenset(traits), width=2)
