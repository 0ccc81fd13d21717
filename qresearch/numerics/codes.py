"""Codes: the integers that a quantizer stores, and what turns them back into values."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qresearch.numerics.rounding import ROUNDINGS, in_steps


class Codes(NamedTuple):
    """Integer codes with the grid they live on, in the granularity's view of the tensor.

    values: int32. A uniform grid decodes to (values - zero_point) * scale; a codebook to codebook[values] * scale.
    """

    values: Int[Array, "..."]
    scale: Float[Array, "..."]
    zero_point: Float[Array, "..."]
    codebook: Float[Array, " levels"] | None = None


def encode_uniform(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    zero_point: Float[Array, "..."],
    qmin: Float[Array, ""],
    qmax: Float[Array, ""],
    rounding: str = "half_even",
) -> Codes:
    """The codes clip(round(x / scale) + zero_point, qmin, qmax); ``decode`` of them equals ``fake_quant`` exactly.

    Stochastic rounding is for training and has no single code: what is stored is rounded half to even.
    """
    units = ROUNDINGS["half_even" if rounding == "stochastic" else rounding](in_steps(x, scale))
    values = jnp.clip(units + jnp.round(zero_point), qmin, qmax)
    return Codes(values.astype(jnp.int32), scale, jnp.round(zero_point))


def decode(codes: Codes) -> Float[Array, "..."]:
    """The float32 values that the codes stand for."""
    if codes.codebook is not None:
        return codes.codebook[codes.values] * codes.scale
    return (codes.values.astype(jnp.float32) - codes.zero_point) * codes.scale
