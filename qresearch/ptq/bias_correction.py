"""Bias correction: the mean error of every output channel is subtracted."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from qresearch.graph.contract import contraction_of, output_channels
from qresearch.programs import run
from qresearch.ptq.sequence import Layer, visit_layers
from qresearch.ptq.state import Method, Quantized
from qresearch.qmodel import QParams


def bias_correction() -> Method:
    """Adds E[contract(W, x)] - E[contract(Ŵ, x̂)] to every output channel, layer by layer, over the calibration set.

    Hats are quantized, by the layers before it too; a kernel that another method found is the one that counts.
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019,
    https://arxiv.org/abs/1906.04721, section 4.2, the empirical variant, from calibration data. Where we differ: the
    shift is kept apart from the bias, which the function may not have.
    """

    def method(quantized: Quantized, key: Array) -> Quantized:
        def visit(layer: Layer, qparams: QParams) -> dict[str, Any]:
            unit, bits = layer.unit, quantized.bits[layer.row]
            own = {name: part for name, part in qparams[unit.layer.name].items() if name != "shift"}
            contract = contraction_of(unit.layer.contraction)
            kernel = layer.weight
            weight = kernel if unit.weight is None else unit.weight.apply(own["weight"], kernel, bits[0])
            wanted = run(contract, layer.float_weight, layer.float_inputs)
            error = wanted - run(contract, weight, layer.quantized_inputs(own, bits))
            channels = output_channels(unit.layer.contraction)
            axes = tuple(axis for axis in range(error.ndim) if axis not in channels)
            return {**own, "shift": jnp.mean(error, axes, keepdims=True)}

        return quantized._replace(qparams=visit_layers(quantized, visit))

    return method
