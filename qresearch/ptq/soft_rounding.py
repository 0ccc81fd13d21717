"""AdaRound's relaxation: every weight is rounded down or up, and a rectified sigmoid decides which."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.errors import GraphError
from qresearch.numerics.codes import Codes
from qresearch.numerics.rounding import in_steps
from qresearch.units import Unit

ZETA, GAMMA = 1.1, -0.1  # the sigmoid is stretched to this range and clipped, so that it reaches 0 and 1
HUGE = 1e30  # of either sign, it is encoded as the last code


class Grid(NamedTuple):
    """The grid of a layer's weight, in its granularity's view: floor(w / scale) + zero_point, unclipped, and the rest.

    down, fraction: of the view's shape; scale, zero_point: broadcast to it; qmin, qmax: scalars.
    """

    down: Float[Array, "..."]
    fraction: Float[Array, "..."]
    scale: Float[Array, "..."]
    zero_point: Float[Array, "..."]
    qmin: Float[Array, ""]
    qmax: Float[Array, ""]


def is_rounded(unit: Unit, bits: Float[Array, "2"]) -> bool:
    """Whether a layer's kernel is rounded at these bits: neither pruned nor in float, and no factor of a product."""
    return unit.weight is not None and 0 < float(bits[0]) < 32 and not unit.layer.contraction.product


def weight_grid(unit: Unit, qparams: object, weight: Float[Array, "..."], bits: Float[Array, ""]) -> Grid:
    """The integer grid on which a layer's weight is rounded. GraphError for a method that has none of its own."""
    quantizer = unit.weight
    if quantizer is None or "calibrates_in_apply" in quantizer.traits or quantizer.width is not None:
        raise GraphError(_needs(unit))
    codes: Codes = quantizer.encode(qparams, weight, bits)
    if codes.codebook is not None or "rescales" in quantizer.traits:
        raise GraphError(_needs(unit))
    ends = [quantizer.encode(qparams, jnp.full_like(weight, end), bits).values for end in (-HUGE, HUGE)]
    steps = in_steps(weight.reshape(codes.values.shape), codes.scale)
    down = jnp.floor(steps)
    return Grid(
        down + codes.zero_point,
        steps - down,
        codes.scale,
        codes.zero_point,
        ends[0].min().astype(jnp.float32),
        ends[1].max().astype(jnp.float32),
    )


def start(grid: Grid) -> Float[Array, "..."]:
    """The logits whose ``soft`` is the fraction: the relaxed weight starts as the float one."""
    inside = jnp.clip(grid.fraction, 1e-4, 1.0 - 1e-4)
    return -jnp.log((ZETA - GAMMA) / (inside - GAMMA) - 1.0)


def soft(logits: Float[Array, "..."]) -> Float[Array, "..."]:
    """h(V) = clip(σ(V) (ζ - γ) + γ, 0, 1): how far each weight is rounded up."""
    return jnp.clip(jax.nn.sigmoid(logits) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def rounded(grid: Grid, up: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The weight s (clip(⌊w/s⌋ + z + up, qmin, qmax) - z), of the kernel's shape; on the grid where up is 0 or 1.

    A weight that is on the grid stays there: what was pruned to 0 remains 0.
    """
    codes = jnp.clip(grid.down + jnp.where(grid.fraction > 0, up, 0.0), grid.qmin, grid.qmax)
    return ((codes - grid.zero_point) * grid.scale).reshape(shape)


def indecision(logits: Float[Array, "..."], beta: Float[Array, ""]) -> Float[Array, ""]:
    """Σ 1 - |2h - 1|^β, which is 0 where every weight is decided. Large β leaves h free but near 0 and 1."""
    distance = jnp.abs(2.0 * soft(logits) - 1.0)
    # A power of zero has an infinite gradient for β < 1, and 0^β of a traced β a NaN one.
    return jnp.sum(1.0 - jnp.maximum(distance, 1e-6) ** beta)


def _needs(unit: Unit) -> str:
    method = unit.rule.weight and unit.rule.weight.quantizer
    return (
        f"the rounding of {unit.layer.name} cannot be learned: quantizer '{method}'"
        " has no integer grid that stays where it was calibrated; use minmax, lsq or another uniform method"
    )
