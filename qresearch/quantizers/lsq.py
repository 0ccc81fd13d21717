"""LSQ: the step size is learned by gradient descent."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant, scale_gradient
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, UnsupportedSpecError, at_width


class LSQ(NamedTuple):
    """The step size, of x's rank with ones on shared axes. It belongs to the width it was initialised at."""

    scale: Float[Array, "..."]


def lsq(spec: QuantSpec, /) -> Quantizer:
    """Learned Step Size Quantization: x̂ = s round(clip(x / s, qmin, qmax)), s learned.

    ∂x̂/∂s = qmin below, qmax above, round(x/s) - x/s inside, times 1 / sqrt(N qmax), N the elements that share a step
    (for an input the batch axis included, as in the public code). ∂x̂/∂x = 1 where qmin <= x/s <= qmax.
    Esser et al., Learned Step Size Quantization, 2020, https://arxiv.org/abs/1902.08153.
    Where we differ: |s| is used, floored above zero, because plain SGD can push a step through zero; the paper's
    initial step 2 mean|x| / sqrt(qmax), 1.5 to 4.6 times too large on normal data, is replaced by any ``spec.range``.
    """
    if not spec.symmetric:
        raise UnsupportedSpecError("lsq has no zero-point: use symmetric: true, or a method that learns an offset")
    mask = spec.mask or "unrounded"

    def init(x: Array, bits: Bits) -> LSQ:
        axes = spec.granularity.shared_axes(x.ndim)
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        if spec.range is None:
            mean = jnp.mean(jnp.abs(x.astype(jnp.float32)), axis=axes, keepdims=True)
            return LSQ(_positive(2.0 * mean / jnp.sqrt(jnp.maximum(qmax, 1.0))))
        low, high = RANGES[spec.range](x, bits, axes, spec.signed, spec.symmetric, spec.narrow)
        return LSQ(scale_from_range(low, high, qmin, qmax, symmetric=True)[0])

    def apply(qparams: LSQ, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        elements = x.size // qparams.scale.size
        step = scale_gradient(qparams.scale, 1.0 / jnp.sqrt(elements * jnp.maximum(qmax, 1.0)))
        x_hat = fake_quant(x, _positive(step), 0.0, qmin, qmax, mask=mask, rounding=spec.rounding, key=key)
        return at_width(bits, x, x_hat)

    def encode(qparams: LSQ, x: Array, bits: Bits) -> Codes:
        step = _positive(qparams.scale)
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        return encode_uniform(x, step, jnp.zeros_like(step), qmin, qmax, spec.rounding)

    return Quantizer(init, apply, encode, learnable=("scale",))


def _positive(scale: Array) -> Array:
    """|scale|, never zero: the gradient of the absolute value keeps pushing a negative step back."""
    return jnp.maximum(jnp.abs(scale), 1e-12)
