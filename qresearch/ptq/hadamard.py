"""Hadamard rotation: inputs are turned so that no channel stands out, and kernels are turned back."""

from __future__ import annotations

import glob
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from qresearch.programs import run
from qresearch.ptq.sequence import Layer, visit_layers
from qresearch.ptq.state import Method, Quantized, recalibrated, with_kernel
from qresearch.qmodel import QParams
from qresearch.units import Unit


def hadamard() -> Method:
    """Every layer's input x becomes x R and its kernel Rᵀ W, with R = diag(±1) H / sqrt(n): the function is the same.

    H: a Hadamard matrix of the input's n channels; where n is no power of two, blocks of the largest one that divides
    it. R spreads an outlier of one channel over all of its block, so that a range for all channels fits each. Ranges
    are calibrated anew, and inputs become signed. A layer with channels in groups, or an odd number of them, is left
    as it is.
    Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, 2024, https://arxiv.org/abs/2404.00456.
    Where we differ: every layer's input is turned where it is used (the paper's online rotation, n log n operations a
    token), and nothing is fused across the residual stream, so that it works for LayerNorm, and any graph, unchanged.
    """

    def method(quantized: Quantized, key: Array) -> Quantized:
        signed = _with_signed_inputs(quantized)

        def visit(layer: Layer, qparams: QParams) -> dict[str, Any]:
            own, bits = qparams[layer.unit.layer.name], signed.bits[layer.row]
            if not _is_rotated(layer.unit):
                return own
            channels = layer.inputs.shape[layer.unit.layer.contraction.channel_pair[1]]
            signs = jax.random.rademacher(jax.random.fold_in(key, layer.row), (channels,), jnp.float32)
            return _rotated(layer, own, bits, signs[:, None] * jnp.asarray(hadamard_matrix(channels)))

        return signed._replace(qparams=visit_layers(signed, visit))

    return method


def _is_rotated(unit: Unit) -> bool:
    contraction = unit.layer.contraction
    return contraction.feature_groups == 1 and contraction.input_shape[contraction.channel_pair[1]] % 2 == 0


def _with_signed_inputs(quantized: Quantized) -> Quantized:
    """What was never negative, such as the output of a ReLU, is so no more once it is turned."""
    model = quantized.model
    signed = [
        replace(unit.rule, pattern=glob.escape(unit.layer.name), input=replace(unit.rule.input, signed=True))
        for unit in model.units
        if unit.rule.input is not None and _is_rotated(unit)
    ]
    return recalibrated(quantized, model.fn, quantized.params, (*signed, *model.rules)) if signed else quantized


def hadamard_matrix(channels: int) -> Float[np.ndarray, "channels channels"]:
    """An orthogonal matrix of blocks H / sqrt(block), whose size is the largest power of two that divides channels."""
    block = math.gcd(channels, 1 << channels.bit_length())
    turned = scipy.linalg.hadamard(block) / math.sqrt(block)
    return np.asarray(np.kron(np.eye(channels // block), turned), np.float32)


def _rotated(
    layer: Layer, own: dict[str, Any], bits: Float[Array, "2"], rotation: Float[Array, "channels channels"]
) -> dict[str, Any]:
    unit = layer.unit
    axes = unit.layer.contraction.channel_pair

    def turn(array: Array, axis: int) -> Array:
        return jnp.moveaxis(jnp.matmul(jnp.moveaxis(array, axis, -1), rotation, precision="highest"), -1, axis)

    kernel, x = map(turn, (layer.weight, layer.inputs), axes)
    return with_kernel(
        own,
        kernel,
        weight=unit.weight and run(unit.weight.init, kernel, bits[0]),
        input=unit.input and run(unit.input.init, x, bits[1]),
        rotation=own["rotation"] @ rotation if "rotation" in own else rotation,
    )
