"""LSQ+: the step size and the offset of the grid are learned by gradient descent."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant, scale_gradient
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.range_method import sample
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width

OFFSET_BITS = 16.0  # float32 cannot hold more bits of code beside a real offset: wider affine grids use this one
FIT_STEPS = 40  # of the initial alternation; normal data at 2 bits need them all (0.1477 to 0.1187), ReLU data 5


class LSQPlus(NamedTuple):
    """The step and the value that code 0 stands for, of x's rank with ones on shared axes. Both belong to a width."""

    scale: Float[Array, "..."]
    offset: Float[Array, "..."]


def lsq_plus(spec: QuantSpec, /) -> Quantizer:
    """Learned step and offset: x̂ = s round(clip(t, qmin, qmax)) + β with t = (x - β) / s; symmetric specs fix β = 0.

    ∂x̂/∂s = round(t) - t inside, qmin or qmax outside; ∂x̂/∂β = 0 inside, 1 outside; ∂x̂/∂x = 1 inside, 0 outside. Both
    learned gradients are multiplied by 1 / sqrt(N qmax) as in LSQ and in the public code.
    Bhalgat et al., LSQ+: Improving Low-bit Quantization through Learnable Offsets and Better Initialization, 2020,
    https://arxiv.org/abs/2004.09576. Initialised as there: symmetric (weights) s = max|μ ± 3σ| / 2^(b-1); affine
    (inputs) the (s, β) of least squared error, which we find by alternating the codes and the line x ≈ s code + β.
    Where we differ: the code is stored with the real zero-point -β / s, so that an affine grid need not contain zero
    (pad with the value of a code, not with 0); |s| is used, floored above zero; ``spec.range`` replaces the init.
    Default mask "unrounded" and rounding half to even: the paper clips before it rounds, as LSQ does.
    """
    mask = spec.mask or "unrounded"

    def codes_at(bits: Bits) -> tuple[Array, Array]:
        bits = jnp.asarray(bits, jnp.float32)
        widest = bits if spec.symmetric else jnp.where(bits > OFFSET_BITS, OFFSET_BITS, bits)
        return integer_range(widest, spec.signed, spec.narrow)

    def init(x: Array, bits: Bits) -> LSQPlus:
        axes = spec.granularity.shared_axes(x.ndim)
        x, (qmin, qmax) = x.astype(jnp.float32), codes_at(bits)
        if spec.symmetric and spec.range is None:
            half = jnp.maximum(-qmin if spec.signed else qmax, 1.0)
            scale = _positive(_three_deviations(x, axes) / half)
            return LSQPlus(scale, jnp.zeros_like(scale))
        low, high = RANGES[spec.range or "mse"](x, bits, axes, spec.signed, spec.symmetric, spec.narrow)
        scale, zero_point = scale_from_range(low, high, qmin, qmax, spec.symmetric)
        start = LSQPlus(_positive(scale), -zero_point * _positive(scale))
        return start if spec.range else _least_squares(start, sample(x, axes), qmin, qmax, axes)

    def apply(qparams: LSQPlus, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        qmin, qmax = codes_at(bits)
        factor = 1.0 / jnp.sqrt(x.size // qparams.scale.size * jnp.maximum(qmax, 1.0))
        scale, offset = (scale_gradient(value, factor) for value in qparams)
        scale, wide = _positive(scale), x.astype(scale.dtype)
        if spec.symmetric:
            x_hat = fake_quant(wide, scale, 0.0, qmin, qmax, mask=mask, rounding=spec.rounding, key=key)
        else:
            multiple = fake_quant(wide - offset, scale, 0.0, qmin, qmax, mask=mask, rounding=spec.rounding, key=key)
            # The value is what ``decode`` makes of the code, bit for bit; the gradient is that of the equation.
            value = (jnp.round(multiple / scale) + offset / scale) * scale
            x_hat = straight_through(stop_gradient(value), multiple + offset, jnp.ones_like(value))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: LSQPlus, x: Array, bits: Bits) -> Codes:
        scale, (qmin, qmax) = _positive(qparams.scale), codes_at(bits)
        shifted = x if spec.symmetric else x.astype(jnp.float32) - qparams.offset
        codes = encode_uniform(shifted, scale, jnp.zeros_like(scale), qmin, qmax, spec.rounding)
        return codes if spec.symmetric else codes._replace(zero_point=-qparams.offset / scale)

    traits = {"no_zero_level": not spec.symmetric, "passes_gradient": mask == "none"}
    learnable = ("scale",) if spec.symmetric else ("scale", "offset")
    return Quantizer(init, apply, encode, learnable, frozenset(name for name, holds in traits.items() if holds))


def _positive(scale: Array) -> Array:
    """|scale|, never zero: the gradient of the absolute value keeps pushing a negative step back."""
    return jnp.maximum(jnp.abs(scale), 1e-12)


def _three_deviations(x: Array, axes: tuple[int, ...]) -> Array:
    """max|μ ± 3σ|, with x divided by its largest value first: squares of 1e30 are infinite."""
    largest = jnp.maximum(jnp.max(jnp.abs(x), axis=axes, keepdims=True), jnp.finfo(jnp.float32).tiny)
    mean, deviation = (f(x / largest, axis=axes, keepdims=True) for f in (jnp.mean, jnp.std))
    return largest * (jnp.abs(mean) + 3.0 * deviation)


def _least_squares(start: LSQPlus, x: Array, qmin: Array, qmax: Array, axes: tuple[int, ...]) -> LSQPlus:
    """Alternates the codes of a grid and the regression of x on its codes, and takes what lowers the error.

    From ``start``, which covers zero, or from the range of x itself, whichever is better.
    """
    unit = start.scale  # of the residuals: their squares stay finite

    def mean(values: Array) -> Array:
        return jnp.mean(values, axis=axes, keepdims=True)

    def codes(grid: LSQPlus) -> Array:
        return jnp.clip(jnp.round((x - grid.offset) / grid.scale), qmin, qmax)

    def error(grid: LSQPlus) -> Array:
        residual = (codes(grid) * grid.scale + grid.offset - x) / unit
        return mean(residual * residual)

    def better(new: LSQPlus, old: LSQPlus) -> LSQPlus:
        lower = error(new) < error(old)
        return LSQPlus(*(jnp.where(lower, one, other) for one, other in zip(new, old, strict=True)))

    def step(_: int, grid: LSQPlus) -> LSQPlus:
        code = codes(grid)
        centred = code - mean(code)
        slope = unit * mean(centred * ((x - mean(x)) / unit)) / jnp.maximum(mean(centred * centred), 1e-12)
        return better(LSQPlus(_positive(slope), mean(x) - slope * mean(code)), grid)

    low, high = (f(x, axis=axes, keepdims=True) for f in (jnp.min, jnp.max))
    scale = _positive((high - low) / jnp.maximum(qmax - qmin, 1.0))
    return jax.lax.fori_loop(0, FIT_STEPS, step, better(LSQPlus(scale, low - qmin * scale), start))
