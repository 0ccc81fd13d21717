"""EWGS: the gradient of every element is scaled by its own rounding error."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes
from qresearch.numerics.grid import integer_range
from qresearch.numerics.moments import mean_and_deviation
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.ratio import clipped_ratio
from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

HALF_NORMAL = math.sqrt(1.0 - 2.0 / math.pi)  # the deviation of |N(0, 1)|


class EWGS(NamedTuple):
    """The ends of the interval that is quantized, and the size of the result: x's rank with ones on shared axes."""

    lower: Float[Array, "..."]
    upper: Float[Array, "..."]
    output_scale: Float[Array, "..."]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled_gradient(delta: float, x: Float[Array, "*s"], quantized: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``quantized``; an upstream gradient g reaches x as g (1 + delta sign(g) (x - quantized))."""
    return quantized


def _forward(delta: float, x: Array, quantized: Array) -> tuple[Array, Array]:
    return quantized, x - quantized


def _backward(delta: float, error: Array, upstream: Array) -> tuple[Array, Array]:
    return upstream * (1.0 + delta * jnp.sign(upstream) * error), jnp.zeros_like(upstream)


scaled_gradient.defvjp(_forward, _backward)


def ewgs(spec: QuantSpec, /, *, delta: float = 1e-3) -> Quantizer:
    """Element-wise gradient scaling: x_n = clip((x - l) / (u - l), 0, 1), q = round(n x_n) / n, n = 2^b - 1.

    x̂ = c (2q - 1) for weights (a level at either end, none at zero), c q for inputs; l, u and c are learned.
    The gradient g of q reaches x_n as g (1 + δ sign(g) (x_n - q)); δ = 0 is the straight-through estimator. l, u and x
    get it through x_n: nothing where that is clipped. Bits get none.
    Lee, Kim and Ham, Network Quantization with Element-wise Gradient Scaling, 2021, https://arxiv.org/abs/2104.00903.
    u and l start at ±3 deviations (weights), at 3 deviations of the normal whose half x is, and 0 (inputs; the authors
    start l at min x, 0 after a ReLU), or at ``spec.range``.
    Where we differ: the authors learn one output scale for a layer and start it from the outputs; here each site has
    its own, which starts at the interval's size, so that x̂ approximates x. δ is fixed (there also from Hessian traces).
    u - l is floored above zero, and |c| is used, as there.
    """
    require("ewgs", spec, "learns both ends of its interval", symmetric=True, narrow=False)
    require("ewgs", spec, "clips before it rounds to the nearest level", mask=None, rounding="half_even")

    half = 0.5 if spec.signed else 0.0  # where the codes lie between integers

    def init(x: Array, bits: Bits) -> EWGS:
        axes = spec.granularity.shared_axes(x.ndim)
        if spec.range is not None:
            low, high = RANGES[spec.range](x, bits, axes, spec.signed, True, False)
            bound = jnp.maximum(-low, high)
        else:
            bound = mean_and_deviation(x, axes)[1] * (3.0 if spec.signed else 3.0 / HALF_NORMAL)
        return EWGS(-bound if spec.signed else jnp.zeros_like(bound), bound, bound)

    def normalized(qparams: EWGS, x: Array) -> Array:
        """x in [-1, 1] (weights) or [0, 1]: zero is the interval's middle or its lower end."""
        size = jnp.maximum(qparams.upper - qparams.lower, 1e-35)
        if spec.signed:
            return clipped_ratio(x.astype(jnp.float32) - (qparams.upper + qparams.lower) / 2.0, size / 2.0, -1.0, 1.0)
        return clipped_ratio(x.astype(jnp.float32) - qparams.lower, size, 0.0, 1.0)

    def apply(qparams: EWGS, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        t, intervals, scale = normalized(qparams, x), _intervals(bits, spec.signed), jnp.abs(qparams.output_scale)
        steps = stop_gradient(jnp.round(t * intervals - half) + half)
        q = scaled_gradient(delta / 2.0 if spec.signed else delta, t, steps / intervals)
        # (c / n) steps, as decoding has it, which rounds differently from c (steps / n); the gradient is that of c q
        quantized = stop_gradient(steps * in_steps(scale, intervals))
        x_hat = straight_through(quantized, scale * q, jnp.ones_like(q))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: EWGS, x: Array, bits: Bits) -> Codes:
        intervals, scale = _intervals(bits, spec.signed), jnp.abs(qparams.output_scale)
        values = jnp.round(normalized(qparams, x) * intervals - half).astype(jnp.int32)
        return Codes(values, in_steps(scale, intervals), jnp.full_like(scale, -half))

    traits = frozenset({"no_zero_level"} if spec.signed else ())
    return Quantizer(init, apply, encode, ("lower", "upper", "output_scale"), traits)


def _intervals(bits: Bits, signed: bool) -> Array:
    """The steps of the grid in a length of one: n of [0, 1], n / 2 of [-1, 1]."""
    steps = integer_range(stop_gradient(jnp.asarray(bits, jnp.float32)), signed=False)[1]
    return steps / 2.0 if signed else steps
