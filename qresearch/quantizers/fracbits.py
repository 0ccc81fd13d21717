"""FracBits: a fractional bit-width mixes the two integer ones beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require


class FracBits(NamedTuple):
    """The largest magnitude of the grid, at every width, of x's rank with ones on shared axes."""

    bound: Float[Array, "..."]


def fractional(quantize: Callable[[Array], Array], bits: Float[Array, ""]) -> Float[Array, "..."]:
    """(1 - λ + ⌊λ⌋) q(⌊λ⌋) + (λ - ⌊λ⌋) q(⌊λ⌋ + 1), at λ = bits; in λ its derivative is q(⌊λ⌋ + 1) - q(⌊λ⌋).

    quantize(width) -> x̂ at an integer width. At integer bits the result is q(bits) exactly.
    """
    lower = jnp.floor(bits)
    share = bits - lower
    return (1.0 - share) * quantize(lower) + share * quantize(lower + 1.0)


def fracbits(spec: QuantSpec, /) -> Quantizer:
    """Fractional bits: interpolates linearly, in the bit-width, between the two integer widths beside it.

    x̂(λ) = (1 - λ + ⌊λ⌋) q(⌊λ⌋) + (λ - ⌊λ⌋) q(⌊λ⌋ + 1), ∂x̂/∂λ = q(⌊λ⌋ + 1) - q(⌊λ⌋). The cost of a fractional width
    is interpolated likewise, and training ends by rounding it. The ends belong to it: q(0) = 0 and q(32) = x, so that a
    pruned tensor still has a gradient to its bits.
    Yang and Jin, FracBits: Mixed Precision Quantization via Fractional Bit-Widths, 2021,
    https://arxiv.org/abs/2007.02017.
    Where we differ: q is one symmetric grid up to a learned bound (``spec.range``, min-max by default) with the
    gradients of ``fake_quant``, mask "unrounded"; the authors take DoReFa weights (floor of 2^b x) and PACT inputs. The
    magnitude of the bound, floored above zero, is used. ``encode`` stores the nearest integer width.
    """
    require("fracbits", spec, "has no zero-point", symmetric=True)
    calibrate = RANGES[spec.range or "minmax"]

    def grid(qparams: FracBits, bits: Array) -> tuple[Array, Array, Array, Array]:
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        bound = jnp.maximum(jnp.abs(qparams.bound), 1e-37)
        return (*scale_from_range(-bound, bound, qmin, qmax, symmetric=True), qmin, qmax)

    def init(x: Array, bits: Bits) -> FracBits:
        low, high = calibrate(x, bits, spec.granularity.shared_axes(x.ndim), spec.signed, True, spec.narrow)
        return FracBits(jnp.maximum(-low, high))

    def apply(qparams: FracBits, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        wide = jnp.result_type(float)  # float32, and float64 where a test of the closed form has switched it on
        value, mask, rounding = x.astype(wide), spec.mask or "unrounded", spec.rounding

        def quantize(width: Array) -> Array:
            quantized = fake_quant(value, *grid(qparams, width), mask=mask, rounding=rounding, key=key)
            return at_width(width, value, quantized)

        return fractional(quantize, jnp.asarray(bits, wide)).astype(x.dtype)

    def encode(qparams: FracBits, x: Array, bits: Bits) -> Codes:
        return encode_uniform(x, *grid(qparams, jnp.round(jnp.asarray(bits, jnp.float32))), spec.rounding)

    traits = frozenset({"passes_gradient"} if spec.mask == "none" else ())
    return Quantizer(init, apply, encode, ("bound",), traits)
