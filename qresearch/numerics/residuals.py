"""A value as two bits and residuals that double the width, each on the grid that refines the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.numerics.rounding import in_steps

WIDTHS = (2, 4, 8, 16, 32)
# How many steps of w bits make one of w/2 bits: (2^w - 1) / (2^(w/2) - 1) = 2^(w/2) + 1. The first divides the range.
RATIOS = (3.0, 5.0, 17.0, 257.0, 65537.0)


class Residuals(NamedTuple):
    """The whole numbers c and the steps s of widths 2, 4, 8, 16, 32: the value is the sum of their products."""

    codes: tuple[Float[Array, "..."], ...]
    steps: tuple[Float[Array, "..."], ...]


def decompose(x: Float[Array, "..."], extent: Float[Array, "..."]) -> Residuals:
    """s_2 = extent / 3, s_w = s_(w/2) / (2^(w/2) + 1); c_w = round((x - the values before it) / s_w).

    extent: the length of the range, 2β or β. The sum up to width w is x rounded to steps of s_w.
    van Baalen et al., Bayesian Bits: Unifying Quantization and Pruning, 2020, https://arxiv.org/abs/2005.07093.
    """
    codes, steps = [], []
    for ratio in RATIOS:
        extent = in_steps(extent, jnp.float32(ratio))
        codes.append(jnp.round(in_steps(x, extent)))
        steps.append(extent)
        x = x - extent * codes[-1]
    return Residuals(tuple(codes), tuple(steps))


def gated_sum(
    parts: Residuals, gates: Sequence[Float[Array, "..."]]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """c_2 + z_4 (c_4 / 5 + z_8 (...)) in steps of the widest width whose gates z_4, z_8, ... are open, and that step.

    A whole number for gates of 0 and 1, exact up to 2^24: the code of the direct rounding.
    """
    (total, *codes), (unit, *steps) = parts
    weight = jnp.ones_like(gates[0])
    for gate, ratio, code, step in zip(gates, RATIOS[1:], codes, steps):
        weight = weight * gate
        total = jnp.where(weight > 0.0, total * ratio + weight * code, total)
        unit = jnp.where(weight > 0.0, step, unit)
    return total, unit
