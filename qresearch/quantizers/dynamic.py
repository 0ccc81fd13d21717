"""Dynamic quantization: the range of every tensor is taken when it is quantized."""

from __future__ import annotations

from typing import NamedTuple

from jax.lax import stop_gradient
from jaxtyping import Array

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width


class Dynamic(NamedTuple):
    """Nothing: the range follows the tensor."""


def dynamic(spec: QuantSpec, /) -> Quantizer:
    """Integer quantization with the range of the tensor itself: x̂ = s (clip(round(x / s) + z, qmin, qmax) - z).

    s and z cover ``spec.range`` (min-max by default) of the x that is quantized: of a whole tensor, per_channel or
    per_group, or for inputs per_token, one scale for every index of the axes that are not summed over. A per-tensor
    range depends on the other examples of the batch; a per-token one does not.
    ∂x̂/∂x = 1 inside the range, which is a constant to the gradient (mask "rounded"); ``bits`` has its gradient.
    Yao et al., ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers, 2022,
    https://arxiv.org/abs/2206.01861 (token-wise quantization of inputs). Where we differ: affine grids, any range.
    A search such as "mse" runs at every call. Rounding half to even.
    """
    calibrate, mask = RANGES[spec.range or "minmax"], spec.mask or "rounded"

    def grid(x: Array, bits: Bits) -> tuple[Array, Array, Array, Array]:
        axes = spec.granularity.shared_axes(x.ndim)
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        x = stop_gradient(x)
        low, high = calibrate(x, stop_gradient(bits), axes, spec.signed, spec.symmetric, spec.narrow)
        return (*scale_from_range(low, high, qmin, qmax, spec.symmetric), qmin, qmax)

    def init(x: Array, bits: Bits) -> Dynamic:
        return Dynamic()

    def apply(qparams: Dynamic, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        x_hat = fake_quant(x, *grid(x, bits), mask=mask, rounding=spec.rounding, key=key)
        return at_width(bits, x, x_hat)

    def encode(qparams: Dynamic, x: Array, bits: Bits) -> Codes:
        return encode_uniform(x, *grid(x, bits), spec.rounding)

    # The extremes of a rounded tensor are on its grid, so that it gives the same scale again, to a last bit.
    extremes = spec.range in (None, "minmax", "absmax")
    traits = {"calibrates_in_apply", "passes_gradient"} | (set() if extremes else {"not_idempotent"})
    return Quantizer(init, apply, encode, traits=frozenset(traits))
