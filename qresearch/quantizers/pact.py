"""PACT: the clipping bound is learned, and only clipped elements teach it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.rounding import in_steps
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require


class PACT(NamedTuple):
    """The clipping bound α, of x's rank with ones on shared axes. It is a value of x, so it serves every width."""

    bound: Float[Array, "..."]


def pact(spec: QuantSpec, /, *, alpha: float | None = None, even_levels: bool = False) -> Quantizer:
    """Parameterized Clipping Activation: y = clip(x, 0, α), x̂ = s round(y / s) with s = α / (2^b - 1).

    ∂x̂/∂α = 1 where x > α and 0 inside: the step's own dependence on α is left out, which is what sets PACT apart from
    LSQ (plain autodiff of the equation gives LSQ's saw-tooth). ∂x̂/∂x = 1 where 0 <= x <= α. Train with an L2 penalty
    on α, which alone pulls it down. Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks,
    2018, https://arxiv.org/abs/1805.06085; its weights are DoReFa's, later SAWB's (``spec.range: sawb`` of any method).
    ``alpha`` is the constant that public code starts from (8 in Distiller, 6 in MQBench); None calibrates it with
    ``spec.range``, by default "mse".
    Where we differ: signed specs, which the paper has not, clip to [-α, α], ∂x̂/∂α = ±1 beyond ±α, with s = α / qmax;
    ``even_levels`` takes MQBench's s = 2α / (2^b - 1) there, whose levels are not symmetric about zero. |α| is used,
    floored above zero. The mask is the clip itself; rounding half to even, as in the public code.
    """
    require("pact", spec, "clips to [0, alpha] or [-alpha, alpha], which is its mask", symmetric=True, mask=None)
    calibrate = RANGES[spec.range or "mse"] if alpha is None else RANGES["minmax"]  # whose values are not used then

    def init(x: Array, bits: Bits) -> PACT:
        axes = spec.granularity.shared_axes(x.ndim)
        low, high = calibrate(x, bits, axes, spec.signed, True, spec.narrow)
        bound = jnp.maximum(jnp.abs(low), jnp.abs(high))
        return PACT(bound if alpha is None else jnp.full_like(bound, alpha))

    def clip(qparams: PACT, x: Array, bits: Bits) -> tuple[Array, Array, Array, Array]:
        bound = jnp.maximum(jnp.abs(qparams.bound), 1e-12)
        x = x.astype(bound.dtype)
        low = -bound if spec.signed else jnp.zeros_like(bound)
        clipped = jnp.where(x > bound, bound, jnp.where(x < low, low, x))
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        step = in_steps(bound, jnp.maximum(qmax, 1.0) + (0.5 if spec.signed and even_levels else 0.0))
        return clipped, stop_gradient(step), qmin, qmax

    def apply(qparams: PACT, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        clipped, step, qmin, qmax = clip(qparams, x, bits)
        x_hat = fake_quant(clipped, step, 0.0, qmin, qmax, mask="none", rounding=spec.rounding, key=key)
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: PACT, x: Array, bits: Bits) -> Codes:
        clipped, step, qmin, qmax = clip(qparams, x, bits)
        return encode_uniform(clipped, step, jnp.zeros_like(step), qmin, qmax, spec.rounding)

    return Quantizer(init, apply, encode, learnable=("bound",))
