"""StatsQ: the scale follows the mean magnitude of the weights, and no level is zero."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.grid import clamp_bits
from qresearch.numerics.magnitude import mean_magnitude
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require


class StatsQ(NamedTuple):
    """Twice the mean magnitude, of x's rank with ones on shared axes; None where it follows the tensor."""

    bound: Float[Array, "..."] | None


def statsq(spec: QuantSpec, /, *, dynamic: bool | None = None) -> Quantizer:
    """Statistics-based mid-rise quantization: x̂ = γ (round(n x / γ - 1/2) + 1/2) / n, γ = 2 mean|x|, n = 2^(b-1).

    The 2^b levels ±γ/2n, ±3γ/2n, ..., up to ±(γ - γ/2n), lie symmetrically around zero, which is none of them.
    ∂x̂/∂x = 1 everywhere, also where x is clipped; γ is a constant to it.
    Liu et al., Oscillation-free Quantization for Low-bit Vision Transformers, 2023, https://arxiv.org/abs/2302.02210.
    ``dynamic``: γ is that of the tensor at hand (weights in training; default where signed), else that of calibration.
    Where we differ: codes are clipped to -n ... n - 1 (there x / γ to 1 - 1e-6, and 1-bit weights below -γ become
    -3γ/2); the paper's rows are the granularity; unsigned tensors, which the paper leaves to LSQ, have 2^b levels in
    (0, γ), n = 2^b.
    """
    require("statsq", spec, "has as many levels above zero as below", symmetric=True, narrow=False)
    require("statsq", spec, "takes a mean and rounds to the nearest level", range=None, rounding="half_even")
    require("statsq", spec, "passes the gradient everywhere", mask=None)
    follows = spec.signed if dynamic is None else dynamic

    def bound_of(x: Array) -> Array:
        return 2.0 * mean_magnitude(stop_gradient(x), spec.granularity.shared_axes(x.ndim))

    def init(x: Array, bits: Bits) -> StatsQ:
        return StatsQ(None if follows else bound_of(x))

    def codes_of(qparams: StatsQ, x: Array, bits: Bits) -> tuple[Array, Array]:
        bound = bound_of(x) if qparams.bound is None else qparams.bound
        levels = jnp.float32(2.0) ** (clamp_bits(bits) - float(spec.signed))  # on either side of zero, or above it
        codes = jnp.round(in_steps(x, bound) * levels - 0.5)
        return jnp.clip(codes, -levels if spec.signed else 0.0, levels - 1.0), bound / levels

    def apply(qparams: StatsQ, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        codes, scale = codes_of(qparams, x, bits)
        quantized = stop_gradient((codes + 0.5) * scale)
        x_hat = straight_through(quantized, x.astype(jnp.float32), jnp.ones_like(quantized))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: StatsQ, x: Array, bits: Bits) -> Codes:
        codes, scale = codes_of(qparams, x, bits)
        return Codes(codes.astype(jnp.int32), scale, jnp.full_like(scale, -0.5))

    traits = {"no_zero_level", "passes_gradient"}
    traits |= {"calibrates_in_apply", "not_idempotent"} if follows else set()
    return Quantizer(init, apply, encode, traits=frozenset(traits))
