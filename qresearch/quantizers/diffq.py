"""DiffQ: uniform noise of one step stands for the rounding, and the step knows the bit-width."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.errors import GraphError, did_you_mean
from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, UnsupportedSpecError, at_width

NOISES = ("uniform", "gaussian")


class DiffQ(NamedTuple):
    """The values that the grid covers, of x's rank with ones on shared axes; None where they follow the tensor."""

    low: Float[Array, "..."] | None
    high: Float[Array, "..."] | None


def diffq(spec: QuantSpec, /, *, noise: str = "uniform", dynamic: bool | None = None) -> Quantizer:
    """Pseudo quantization noise: x̂ = x + (Δ / 2) U[-1, 1] with a key, the rounding to steps of Δ without one.

    Δ = (high - low) / (2^b - 1), the step of the grid at b bits, b any real number. ``noise`` "gaussian" draws N(0, 1)
    in place of U (the authors' code's default). With a key ∂x̂/∂x = 1 and ∂x̂/∂b = (U / 2) ∂Δ/∂b; without one x has the
    clipped straight-through estimator (mask "rounded") and bits that of ``fake_quant``.
    Défossez, Adi and Synnaeve, Differentiable Model Compression via Pseudo Quantization Noise, 2022,
    https://arxiv.org/abs/2104.09987.
    ``dynamic``: low and high are those of the tensor at hand (weights in training, as in the paper; default where
    signed), else those of calibration, and noise is added to the clipped value. ``spec.range`` is min-max by default.
    Where we differ: the grid is that of ``scale_from_range``, with zero on it; low and high get no gradient.
    """
    if noise not in NOISES:
        raise GraphError(f"diffq has no noise '{noise}'{did_you_mean(noise, NOISES)}")
    if spec.rounding == "stochastic":
        raise UnsupportedSpecError("diffq draws its own noise: got rounding 'stochastic'")
    calibrate = RANGES[spec.range or "minmax"]
    follows = spec.signed if dynamic is None else dynamic

    def range_of(x: Array, bits: Bits) -> tuple[Array, Array]:
        axes = spec.granularity.shared_axes(x.ndim)
        return calibrate(stop_gradient(x), stop_gradient(bits), axes, spec.signed, spec.symmetric, spec.narrow)

    def grid(qparams: DiffQ, x: Array, bits: Bits) -> tuple[Array, Array, Array, Array]:
        low, high = qparams
        if low is None or high is None:
            low, high = range_of(x, bits)
        qmin, qmax = integer_range(bits, spec.signed, spec.narrow)
        return (*scale_from_range(low, high, qmin, qmax, spec.symmetric), qmin, qmax)

    def init(x: Array, bits: Bits) -> DiffQ:
        return DiffQ(None, None) if follows else DiffQ(*range_of(x, bits))

    def apply(qparams: DiffQ, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        scale, zero_point, qmin, qmax = grid(qparams, x, bits)
        if key is None:
            mask, rounding = spec.mask or "rounded", spec.rounding
            return at_width(bits, x, fake_quant(x, scale, zero_point, qmin, qmax, mask=mask, rounding=rounding))
        value = x.astype(jnp.float32)
        lowest, highest = (stop_gradient((end - zero_point) * scale) for end in (qmin, qmax))
        value = jnp.where(value < lowest, lowest, jnp.where(value > highest, highest, value))
        draw = jax.random.uniform(key, x.shape, minval=-1.0) if noise == "uniform" else jax.random.normal(key, x.shape)
        return at_width(bits, x, (value + 0.5 * scale * draw).astype(x.dtype))

    def encode(qparams: DiffQ, x: Array, bits: Bits) -> Codes:
        return encode_uniform(x, *grid(qparams, x, bits), spec.rounding)

    traits = {"needs_key"} | ({"calibrates_in_apply", "passes_gradient"} if follows else set())
    if follows and spec.range not in (None, "minmax", "absmax"):
        traits.add("not_idempotent")  # a range that is searched for is another one on the quantized tensor
    return Quantizer(init, apply, encode, traits=frozenset(traits))
