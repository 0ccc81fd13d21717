"""Bayesian Bits: 2 bits, and gated residuals that double the width; the first gate prunes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.residuals import Residuals, decompose, gated_sum
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

ALLOWED_FROM = (4.0, 8.0, 16.0, 31.0)  # the bits from which each residual may be added; 32 is float
INSIDE = 1.0 - 1e-7  # keeps the bound itself from being rounded to a level beyond it; it is 1.0 in 16-bit floats


class BayesianBits(NamedTuple):
    """The bound, of x's rank with ones on shared axes, and the gates in [0, 1], of x's rank and size 1 (z2: one for
    every channel where it prunes channels). Gates are arguments: whoever trains them puts them here.
    """

    bound: Float[Array, "..."]
    z2: Float[Array, "..."]
    z4: Float[Array, "..."]
    z8: Float[Array, "..."]
    z16: Float[Array, "..."]
    z32: Float[Array, "..."]


def bayesian_bits(spec: QuantSpec, /, *, prune_axis: int | None = None) -> Quantizer:
    """Gated residuals: x̂ = z2 (x_2 + z4 (ε_4 + z8 (ε_8 + z16 (ε_16 + z32 ε_32)))), x_2 and ε as in ``decompose``.

    x is clipped to ±β or [0, β] first, times 1 - 1e-7. With gates of 0 and 1 this is the direct rounding of x to the
    steps of the widest open width. ``bits`` closes the gates of wider residuals: it is rounded down to 2, 4, 8 or 16;
    31 allows the 32-bit residual, 1 leaves nothing. z2 prunes the channels of ``prune_axis``, else the tensor.
    ∂x̂/∂x = z2 inside, 0 where clipped (every rounding passes its gradient, so the residuals have none); ∂x̂/∂z_w = what
    it gates times the gates before it; ∂x̂/∂β = (x̂ - z2 x) / β inside, x̂ / β where clipped.
    van Baalen et al., Bayesian Bits: Unifying Quantization and Pruning, 2020, https://arxiv.org/abs/2005.07093.
    Where we differ: ``init`` opens all gates (training them, with ``hard_concrete``, is the caller's) and calibrates β
    by ``spec.range`` (min-max by default); β is floored above zero; a closed gate still gets a gradient. ``encode``
    rounds the gates.
    """
    require("bayesian_bits", spec, "has as many levels below zero as above", symmetric=True, narrow=False)
    require("bayesian_bits", spec, "clips before it rounds to the nearest level", mask=None, rounding="half_even")
    calibrate = RANGES[spec.range or "minmax"]

    def init(x: Array, bits: Bits) -> BayesianBits:
        low, high = calibrate(x, bits, spec.granularity.shared_axes(x.ndim), spec.signed, True, False)
        one, shape = jnp.ones((1,) * x.ndim, jnp.float32), [1] * x.ndim
        if prune_axis is not None:
            shape[prune_axis] = x.shape[prune_axis]
        return BayesianBits(jnp.maximum(-low, high), jnp.ones(shape, jnp.float32), one, one, one, one)

    def clip(qparams: BayesianBits, x: Array) -> tuple[Array, Array, Array]:
        """x clipped, whether it lay inside, and the bound."""
        bound = jnp.maximum(qparams.bound, 1e-24)  # its 32-bit step is 1e-34
        x, limit = x.astype(jnp.float32), INSIDE * bound
        lowest = -limit if spec.signed else jnp.zeros_like(limit)
        clipped = jnp.where(x <= lowest, lowest, jnp.where(x >= limit, limit, x))
        return clipped, (x > lowest) & (x < limit), bound

    def residuals(clipped: Array, bound: Array) -> Residuals:
        return decompose(clipped, 2.0 * bound if spec.signed else bound)

    def allowed(qparams: BayesianBits, bits: Bits) -> tuple[Array, ...]:
        """z2, z4, ..., z32, of which ``bits`` closes the wider ones."""
        bits = jnp.asarray(bits, jnp.float32)
        return tuple(jnp.where(bits >= least, gate, 0.0) for least, gate in zip((2.0, *ALLOWED_FROM), qparams[1:]))

    def apply(qparams: BayesianBits, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        clipped, inside, bound = clip(qparams, x)
        gates = allowed(qparams, bits)
        z2, fixed = stop_gradient(gates[0]), stop_gradient(bound)
        parts = residuals(stop_gradient(clipped), fixed)
        steps, unit = gated_sum(parts, stop_gradient(gates[1:]))
        quantized = z2 * steps * unit
        gated = jnp.zeros_like(quantized)  # the same sum as the equation has it, for the gradient of the gates
        for gate, code, step in zip(gates[::-1], parts.codes[::-1], parts.steps[::-1]):
            gated = gate * (code * step + gated)
        in_x = z2 * inside.astype(jnp.float32)
        in_bound = in_steps(quantized - in_x * stop_gradient(clipped), fixed)
        x_hat = straight_through(quantized, gated, jnp.ones_like(gated))
        x_hat = straight_through(x_hat, x.astype(jnp.float32), in_x)
        x_hat = straight_through(x_hat, jnp.broadcast_to(bound, x.shape), in_bound)
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: BayesianBits, x: Array, bits: Bits) -> Codes:
        clipped, _, bound = clip(qparams, x)
        z2, *gates = (jnp.round(gate) for gate in allowed(qparams, bits))
        steps, unit = gated_sum(residuals(clipped, bound), gates)
        unit = unit + jnp.zeros_like(bound)
        return Codes((z2 * steps).astype(jnp.int32), unit, jnp.zeros_like(unit))

    return Quantizer(init, apply, encode, ("bound",), frozenset({"doubling_widths"}))
