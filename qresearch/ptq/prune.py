"""Magnitude pruning: the smallest weights become 0, and stay 0 in the methods after it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.errors import ConfigError
from qresearch.programs import run
from qresearch.ptq.sequence import Layer, visit_layers
from qresearch.ptq.soft_rounding import is_rounded
from qresearch.ptq.state import Method, Quantized, with_kernel
from qresearch.qmodel import QParams


def prune(*, sparsity: float = 0.5, unit: str = "weight") -> Method:
    """Sets the smallest weights of every quantized layer to 0: the share ``sparsity`` with the least |w|.

    unit: "channel" takes whole output channels, those of the least sum of squares, in place of weights ("weight").
    The range of the weight is calibrated anew on what is left. Records cost pruned weights as if they were stored:
    unstructured zeros save nothing without a sparse format. To remove a whole layer, give it the option of 0 bits in
    the menu.
    Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015,
    https://arxiv.org/abs/1506.02626. Where we differ: one shot, per layer, nothing is trained after it.
    """
    if unit not in ("weight", "channel"):
        raise ConfigError(f"ptq: option 'unit' of method 'prune' is weight or channel, got '{unit}'")

    def method(quantized: Quantized, key: Array) -> Quantized:
        def visit(layer: Layer, qparams: QParams) -> dict[str, Any]:
            own, bits = qparams[layer.unit.layer.name], quantized.bits[layer.row]
            if not is_rounded(layer.unit, bits) or layer.unit.weight is None:
                return own
            channels = layer.unit.layer.contraction.channel_axes
            kernel = jnp.where(_kept(layer.weight, sparsity, channels if unit == "channel" else ()), layer.weight, 0.0)
            return with_kernel(own, kernel, weight=run(layer.unit.weight.init, kernel, bits[0]))

        return quantized._replace(qparams=visit_layers(quantized, visit))

    return method


def _kept(weight: Float[Array, "..."], sparsity: float, channels: tuple[int, ...]) -> Array:
    """Where the weight is kept; exactly round(sparsity n) of its n elements, or channels, are not."""
    summed = tuple(axis for axis in range(weight.ndim) if axis not in channels) if channels else ()
    score = jnp.sum(jnp.square(weight), summed, keepdims=True) if channels else jnp.abs(weight)
    ranks = jnp.argsort(jnp.argsort(score.reshape(-1))).reshape(score.shape)
    return ranks >= round(sparsity * score.size)
