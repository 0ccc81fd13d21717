"""The hard concrete distribution of gates in [0, 1], and the cost of bit-widths in terms of gates."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TEMPERATURE, STRETCH_LOW, STRETCH_HIGH = 2.0 / 3.0, -0.1, 1.1  # tau, gamma, zeta of both papers
WIDTHS = (2.0, 4.0, 8.0, 16.0, 32.0)
GATE_THRESHOLD = 0.34  # a gate is closed for good where P(z = 0) is at least this


class GateLogits(NamedTuple):
    """The parameter φ of every gate of one tensor; z2 prunes, [channels] or None for a tensor that is not pruned."""

    z2: Float[Array, " channels"] | None
    z4: Float[Array, ""]
    z8: Float[Array, ""]
    z16: Float[Array, ""]
    z32: Float[Array, ""]


def hard_sigmoid(phi: Float[Array, "..."]) -> Float[Array, "..."]:
    """clip(1.2 sigmoid(φ / τ) - 0.1, 0, 1): the gate without noise."""
    return _stretch(jax.nn.sigmoid(phi / TEMPERATURE))


def l0_sample(phi: Float[Array, "..."], uniform: Float[Array, "..."]) -> Float[Array, "..."]:
    """A hard concrete gate from a uniform draw u: clip(1.2 sigmoid((log u - log(1 - u) + φ) / τ) - 0.1, 0, 1).

    Louizos, Welling and Kingma, Learning Sparse Neural Networks through L0 Regularization, 2018,
    https://arxiv.org/abs/1712.01312.
    """
    return _stretch(jax.nn.sigmoid((jnp.log(uniform) - jnp.log1p(-uniform) + phi) / TEMPERATURE))


def hc_prob_pos(phi: Float[Array, "..."]) -> Float[Array, "..."]:
    """P(z > 0) = sigmoid(φ - τ log(-γ / ζ)) of a hard concrete gate z."""
    return jax.nn.sigmoid(phi - TEMPERATURE * math.log(-STRETCH_LOW / STRETCH_HIGH))


def gate_is_open(phi: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 where training leaves the gate open, else 0: P(z = 0) < 0.34, that is φ > -0.935."""
    return (1.0 - hc_prob_pos(phi) < GATE_THRESHOLD).astype(jnp.float32)


def bops_regularizer(phi: GateLogits, macs: Float[Array, ""] | float, max_macs: float) -> Float[Array, ""]:
    """(macs / max_macs) Σ_b b Π_{j <= b} P(z_j > 0), the mean over channels: the expected bit-operations of the gates.

    macs: of the layer; max_macs: of the largest one. Without z2 the 2-bit term is the constant 1, as in the authors'
    code. Its gradient in φ is what closes gates.
    van Baalen et al., Bayesian Bits: Unifying Quantization and Pruning, 2020, https://arxiv.org/abs/2005.07093.
    """
    share = macs / max_macs
    kept = jnp.ones(1, jnp.float32) if phi.z2 is None else hc_prob_pos(phi.z2)
    total = kept if phi.z2 is None else 2.0 * share * kept
    for width, gate in zip(WIDTHS[1:], phi[1:]):
        kept = kept * hc_prob_pos(gate)
        total = total + width * share * kept
    return jnp.mean(total)


def _stretch(gate: Array) -> Array:
    """Stretches (0, 1) to (-0.1, 1.1) and clips; a tie with an end has the slope of the inside (``jnp.clip``: half)."""
    gate = gate * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    return jnp.where(gate < 0.0, 0.0, jnp.where(gate > 1.0, 1.0, gate))
