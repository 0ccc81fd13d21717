"""Hard concrete gates over the widths of a menu, and the quantizer that they gate: Bayesian Bits for any menu."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from qresearch.numerics.rounding import in_steps
from qresearch.numerics.straight_through import straight_through
from qresearch.qmodel import QuantizedModel
from qresearch.quantizers import Quantizer
from qresearch.quantizers.bayesian_bits import INSIDE
from qresearch.search.shares import Shares, Widths, palettes
from qresearch.units import Unit

EXACT = 24.0  # widths from here on have steps that float32 cannot tell from 0


class Phi(NamedTuple):
    """The parameters of one operand's gates. widths: one for every allowed width but the least, ascending. channels: of
    the shape of z2 (see ``BayesianBits``), or None where no channel is pruned. Also used for the gates themselves.
    """

    widths: Float[Array, "gate"]
    channels: Float[Array, "..."] | None


class Gated(NamedTuple):
    """The qparams of ``gated``: the bound, the gates of the channels (1 where there are none), and the share of every
    width of the palette.
    """

    bound: Float[Array, "..."]
    channels: Float[Array, "..."]
    share: Float[Array, "width"]


def opened(gates: Float[Array, "gate"]) -> Float[Array, "gate+1"]:
    """Π_{j <= i} z_j: how far each width is reached; 1 for the least one, which has no gate."""
    return jnp.cumprod(jnp.concatenate([jnp.ones(1), gates]))


def shares_of(gates: Float[Array, "gate"], allowed: Sequence[bool]) -> Shares:
    """share_i = Π_{j <= i} z_j (1 - z_i+1) of the allowed widths; of gates' probabilities, P(the width is w_i)."""
    reached = opened(gates)
    share = reached * (1.0 - jnp.concatenate([gates, jnp.zeros(1)]))
    return Shares(share, jnp.asarray([i for i, may in enumerate(allowed) if may], jnp.int32))


def gated(quantizer: Quantizer, widths: Widths) -> Quantizer:
    """x̂ = z Σ_w share_w R_w(clip(x)), R_w(x) = s_w round(x / s_w), s_w = 2β / (2^w - 1) or β / (2^w - 1) if unsigned.

    With shares of gates (``shares_of``) this is x_2 + z_4 (ε_4 + z_8 (ε_8 + ...)) of Bayesian Bits, whose residuals are
    ε_w = R_w - R_w/2, and the same with 3, 5 or 6 bits in between, whose grids do not refine each other. R_0 = 0.
    quantizer: a ``bayesian_bits``, whose sign and qparams these are, and whose gradients: the estimator of x and β
    passes all rounding, and x̂ is linear in every gate. Its ``apply`` takes ``Gated`` qparams and reads no bits.
    van Baalen et al., Bayesian Bits: Unifying Quantization and Pruning, 2020, https://arxiv.org/abs/2005.07093.
    """

    signed = is_signed(quantizer)

    def apply(qparams: Gated, x: Array, bits: Any, *, key: Array | None = None) -> Array:
        bound = jnp.maximum(qparams.bound, 1e-24)
        fixed, exact = stop_gradient(bound), stop_gradient(x.astype(jnp.float32))
        limit = INSIDE * fixed
        lowest = -limit if signed else jnp.zeros_like(limit)
        clipped, inside = jnp.clip(exact, lowest, limit), (exact > lowest) & (exact < limit)
        total = jnp.zeros(x.shape, jnp.float32)
        for share, width in zip(qparams.share, widths):
            total = total + share * _rounded(clipped, 2.0 * fixed if signed else fixed, width)
        total = qparams.channels * total  # linear in every gate, which is their gradient
        quantized, passed = stop_gradient(total), stop_gradient(qparams.channels * _nonzero(qparams.share, widths))
        in_x = passed * inside.astype(jnp.float32)
        x_hat = straight_through(total, x.astype(jnp.float32), in_x)
        in_bound = in_steps(quantized - in_x * clipped, fixed)
        return straight_through(x_hat, jnp.broadcast_to(bound, x.shape), in_bound).astype(x.dtype)

    return quantizer._replace(apply=apply)


def _rounded(clipped: Array, extent: Array, width: float) -> Array:
    """R_w of a clipped tensor."""
    if width <= 0 or width >= EXACT:
        return clipped if width else jnp.zeros_like(clipped)
    step = in_steps(extent, jnp.float32(2.0**width - 1.0))
    return step * jnp.round(in_steps(clipped, step))


def _nonzero(share: Array, widths: Widths) -> Array:
    """The share of all widths but 0, which pass a gradient on."""
    return sum((part for part, width in zip(share, widths) if width), start=jnp.float32(0.0))


def is_signed(quantizer: Quantizer) -> bool:
    """Whether its codes have a sign: an unsigned grid takes what is negative to 0."""
    negative = -jnp.ones(1)
    return bool(quantizer.apply(quantizer.init(-negative, 8.0), negative, 8.0)[0] < 0)


@functools.lru_cache(maxsize=16)
def gated_model(model: QuantizedModel, free: frozenset[tuple[str, str]]) -> QuantizedModel:
    """The same layers with ``gated`` quantizers at the ``free`` sites, (layer, "weight" or "input")."""

    def changed(unit: Unit, operand: str, quantizer: Quantizer | None, widths: Widths) -> Quantizer | None:
        if quantizer is None or (unit.layer.name, operand) not in free:
            return quantizer
        return gated(quantizer, widths)

    units = [
        dataclasses.replace(
            unit,
            weight=changed(unit, "weight", unit.weight, palette.weight),
            input=changed(unit, "input", unit.input, palette.input),
        )
        for unit, palette in zip(model.units, palettes(model))
    ]
    return dataclasses.replace(model, units=tuple(units))
