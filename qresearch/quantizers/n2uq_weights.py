"""The weights of N2UQ: a uniform grid whose size follows their mean magnitude, so that all levels are used."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array

from qresearch.numerics.codes import Codes
from qresearch.numerics.grid import clamp_bits
from qresearch.numerics.magnitude import mean_magnitude
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require


class N2UQWeights(NamedTuple):
    """Nothing: the grid follows the tensor."""


def n2uq_weights(spec: QuantSpec, /) -> Quantizer:
    """x̂ = γ (2 round(n (c + 1) / 2) / n - 1), c = clip(w / γ, -1, 1), n = 2^b - 1, γ = (n / 2^(b-1)) mean|w|.

    2^b levels from -γ to γ, zero not among them, about equally often used by bell-shaped weights. ∂x̂/∂w = 1 everywhere;
    γ is a constant to it.
    Liu et al., Nonuniform-to-Uniform Quantization: Towards Accurate Quantization via Generalized Straight-Through
    Estimation, 2022, https://arxiv.org/abs/2111.14826. Where we differ: the authors' code gives w the gradient 1 / γ.
    """
    require("n2uq", spec, "takes the mean magnitude of a weight", range=None)

    def codes_of(x: Array, bits: Bits) -> tuple[Array, Array]:
        """The codes, which lie half-way between integers, and their scale 2γ / n."""
        levels = jnp.float32(2.0) ** clamp_bits(bits)
        mean = mean_magnitude(x, spec.granularity.shared_axes(x.ndim))
        steps = in_steps(x, mean) * (levels / 4.0)  # n w / 2γ, where n is levels - 1
        last = (levels - 1.0) / 2.0
        return jnp.clip(jnp.round(steps - 0.5) + 0.5, -last, last), mean * (4.0 / levels)

    def init(x: Array, bits: Bits) -> N2UQWeights:
        return N2UQWeights()

    def apply(qparams: N2UQWeights, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        codes, scale = codes_of(stop_gradient(x), stop_gradient(bits))
        x_hat = straight_through(codes * scale, x.astype(jnp.float32), jnp.ones_like(codes))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: N2UQWeights, x: Array, bits: Bits) -> Codes:
        codes, scale = codes_of(x, bits)
        return Codes((codes - 0.5).astype(jnp.int32), scale, jnp.full_like(scale, -0.5))

    traits = {"no_zero_level", "not_idempotent", "calibrates_in_apply", "passes_gradient"}
    return Quantizer(init, apply, encode, traits=frozenset(traits))
