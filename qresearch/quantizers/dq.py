"""DQ: step, range and width of a uniform quantizer are learned, in one of three parametrizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.codes import Codes, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.ranges import RANGES
from qresearch.numerics.straight_through import straight_through
from qresearch.quantizers.base import Bits, Quantizer, QuantSpec, at_width
from qresearch.quantizers.require import require

MAX_BITS = 16.0  # of a learned width, as in the authors' code; the least is 2 signed (-1, 0, 1) and 1 unsigned
SMALLEST = 1e-12  # step and bound: learned ones are used as |value|, floored here


class DQU1(NamedTuple):
    """Step d and width b, of x's rank with ones on shared axes."""

    scale: Float[Array, "..."]
    bits: Float[Array, "..."]


class DQU2(NamedTuple):
    """Width b and largest value q_max, of x's rank with ones on shared axes."""

    bits: Float[Array, "..."]
    bound: Float[Array, "..."]


class DQU3(NamedTuple):
    """Step d and largest value q_max, of x's rank with ones on shared axes."""

    scale: Float[Array, "..."]
    bound: Float[Array, "..."]


class Grid(NamedTuple):
    """What every parametrization comes to: bound = qmax scale. Each field has the gradient that the paper gives it."""

    scale: Array
    bound: Array
    qmax: Array
    bits: Array


def dq_u1(spec: QuantSpec, /) -> Quantizer:
    """DQ that learns step d and width b: x̂ = d round(x / d) if |x| <= q_max, else sign(x) q_max (unsigned: x >= 0).

    q_max = (2^(b-1) - 1) d, or (2^b - 1) d unsigned. Inside, ∂x̂/∂d = (x̂ - x) / d and ∂x̂/∂b = 0; outside,
    ∂x̂/∂d = ±(2^(b-1) - 1) and ∂x̂/∂b = ±2^(b-1) ln 2 d. ∂x̂/∂x = 1 inside, 0 outside.
    Uhlich et al., Mixed Precision DNNs: All you need is a good parametrization, 2020, https://arxiv.org/abs/1905.11452.
    ``bits`` sets the initial width only; afterwards the width is ``learned_bits``: b rounded, from 2 (1 unsigned) to
    16, with the gradient of the identity, also beyond those ends, so that no width is stuck there.
    Where we differ: the step is any positive number, where the authors also round it to a power of two; rounding half
    to even; |d| is used, floored above zero; the start is ``spec.range`` (by default "mse"). The mask is the clip.
    """

    def start(scale: Array, bound: Array, bits: Array) -> DQU1:
        return DQU1(scale, bits)

    return _dq("dq_u1", spec, start)


def dq_u2(spec: QuantSpec, /) -> Quantizer:
    """DQ that learns width b and largest value q_max: the function of ``dq_u1`` with d = q_max / (2^(b-1) - 1).

    Inside, ∂x̂/∂b = -2^(b-1) ln 2 / (2^(b-1) - 1) (x̂ - x) and ∂x̂/∂q_max = (x̂ - x) / q_max; outside, ∂x̂/∂b = 0 and
    ∂x̂/∂q_max = ±1. Uhlich et al., 2020, https://arxiv.org/abs/1905.11452. The rest is as in ``dq_u1``.
    """

    def start(scale: Array, bound: Array, bits: Array) -> DQU2:
        return DQU2(bits, bound)

    return _dq("dq_u2", spec, start)


def dq_u3(spec: QuantSpec, /) -> Quantizer:
    """DQ that learns step d and largest value q_max, the parametrization that the paper recommends.

    The function is that of ``dq_u1``. Inside, ∂x̂/∂d = (x̂ - x) / d and ∂x̂/∂q_max = 0; outside, ∂x̂/∂d = 0 and
    ∂x̂/∂q_max = ±1. The width follows: b = ⌈log2(q_max / d + 1)⌉ + 1, without the 1 unsigned.
    Uhlich et al., 2020, https://arxiv.org/abs/1905.11452. q_max is moved to the nearest multiple of d, of at least 1
    and at most what 16 bits hold: between two, clipping would return values that are not on the grid, and leak a
    gradient to d outside. The rest is as in ``dq_u1``.
    """

    def start(scale: Array, bound: Array, bits: Array) -> DQU3:
        return DQU3(scale, bound)

    return _dq("dq_u3", spec, start)


def _grid_u1(qparams: DQU1, signed: bool) -> Grid:
    bits, scale = _whole(qparams.bits, signed), _positive(qparams.scale)
    qmax = _largest_code(bits, signed)
    return Grid(scale, qmax * scale, qmax, bits)


def _grid_u2(qparams: DQU2, signed: bool) -> Grid:
    bits, bound = _whole(qparams.bits, signed), _positive(qparams.bound)
    qmax = _largest_code(bits, signed)
    scale = bound / qmax
    return Grid(scale, _with_gradient_of(bound, qmax * scale), qmax, bits)


def _grid_u3(qparams: DQU3, signed: bool) -> Grid:
    scale, bound = _positive(qparams.scale), _positive(qparams.bound)
    largest = 2.0 ** (MAX_BITS - signed) - 1.0
    qmax = stop_gradient(jnp.clip(jnp.round(bound / scale), 1.0, largest))
    digits = jnp.frexp(qmax)[1].astype(qmax.dtype)  # ⌈log2(qmax + 1)⌉, exactly, where a quotient of logarithms is not
    bits = _with_gradient_of(jnp.log2(bound / scale + 1.0), digits) + (1.0 if signed else 0.0)
    return Grid(scale, _with_gradient_of(bound, qmax * scale), qmax, bits)


GRIDS: dict[type, Callable[[Any, bool], Grid]] = {DQU1: _grid_u1, DQU2: _grid_u2, DQU3: _grid_u3}


def learned_bits(qparams: DQU1 | DQU2 | DQU3, signed: bool) -> Float[Array, "..."]:
    """The widths in use, whole numbers, one per scale; differentiable, so that a cost in bits can be a penalty."""
    return GRIDS[type(qparams)](qparams, signed).bits


def _dq(name: str, spec: QuantSpec, start: Callable[[Array, Array, Array], Any]) -> Quantizer:
    require(name, spec, "has no zero-point, and its clip is its mask", symmetric=True, mask=None)
    if not spec.signed:
        require(name, spec, "uses every code of an unsigned grid", narrow=False)

    def init(x: Array, bits: Bits) -> Any:
        axes = spec.granularity.shared_axes(x.ndim)
        low, high = RANGES[spec.range or "mse"](x, bits, axes, spec.signed, True, True)
        bound = jnp.maximum(jnp.abs(low), jnp.abs(high))
        width = jnp.full_like(bound, stop_gradient(_whole(jnp.asarray(bits, jnp.float32), spec.signed)))
        return start(bound / _largest_code(width, spec.signed), bound, width)

    def apply(qparams: Any, x: Array, bits: Bits, *, key: Array | None = None) -> Array:
        grid = GRIDS[type(qparams)](qparams, spec.signed)
        wide = x.astype(grid.scale.dtype)
        low, qmin = (-grid.bound, -grid.qmax) if spec.signed else (0.0 * grid.bound, jnp.zeros_like(grid.qmax))
        rounded = fake_quant(wide, grid.scale, 0.0, qmin, grid.qmax, mask="none", rounding=spec.rounding, key=key)
        x_hat = jnp.where(wide > grid.bound, grid.bound, jnp.where(wide < low, low, rounded))
        return at_width(bits, x, x_hat.astype(x.dtype))

    def encode(qparams: Any, x: Array, bits: Bits) -> Codes:
        grid = GRIDS[type(qparams)](qparams, spec.signed)
        wide = x.astype(grid.scale.dtype)
        beyond = jnp.where(
            jnp.abs(wide) > grid.bound, 2.0 * wide, wide
        )  # a division may bring an element just outside back onto the last step
        qmin = -grid.qmax if spec.signed else jnp.zeros_like(grid.qmax)
        return encode_uniform(beyond, grid.scale, jnp.zeros_like(grid.scale), qmin, grid.qmax, spec.rounding)

    fields: tuple[str, ...] = type(start(*[jnp.zeros(())] * 3))._fields
    return Quantizer(init, apply, encode, learnable=fields, traits=frozenset({"learns_bits"}))


def _whole(bits: Array, signed: bool) -> Array:
    return _with_gradient_of(bits, jnp.clip(jnp.round(bits), 2.0 if signed else 1.0, MAX_BITS))


def _largest_code(bits: Array, signed: bool) -> Array:
    return 2.0 ** (bits - 1.0 if signed else bits) - 1.0


def _with_gradient_of(smooth: Array, value: Array) -> Array:
    """``value``, exactly, with the gradient of ``smooth``."""
    return straight_through(stop_gradient(value), smooth, jnp.ones_like(value))


def _positive(value: Array) -> Array:
    return jnp.maximum(jnp.abs(value), SMALLEST)
