"""AWQ: channels whose inputs are large are scaled up before their weights are rounded."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.graph.contract import contraction_of
from qresearch.programs import compiled, run
from qresearch.ptq.sequence import Layer, visit_layers
from qresearch.ptq.soft_rounding import is_rounded
from qresearch.ptq.state import Method, Quantized, with_kernel
from qresearch.qmodel import QParams


def awq(*, steps: int = 20) -> Method:
    """Activation-aware scaling, layer by layer: a kernel's input channels are multiplied by s, its input divided by s.

    s = m^α / sqrt(max(m^α) min(m^α)) with m = E|x̂| per channel, and the α of {0, 1/steps, ..., 1 - 1/steps} whose
    E(contract(Q(s W), Q(x̂ / s)) - contract(W, x))² is smallest; ranges are calibrated anew for each. α = 0 changes
    nothing. A layer whose kernel sees channels in groups (a depthwise convolution) is left as it is.
    Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, 2024,
    https://arxiv.org/abs/2306.00978. Where we differ: the division stays at the layer's input (correction "divisor")
    instead of going into the operation before it; no search for clipping values, which range "mse" has.
    """

    def method(quantized: Quantized, key: Array) -> Quantized:
        def visit(layer: Layer, qparams: QParams) -> dict[str, Any]:
            own, bits = qparams[layer.unit.layer.name], quantized.bits[layer.row]
            if not is_rounded(layer.unit, bits) or layer.unit.layer.contraction.feature_groups > 1:
                return own
            return _scaled(layer, own, bits, steps)

        return quantized._replace(qparams=visit_layers(quantized, visit))

    return method


def _scaled(layer: Layer, own: dict[str, Any], bits: Float[Array, "2"], steps: int) -> dict[str, Any]:
    unit, inputs = layer.unit, layer.inputs
    weight_axis, input_axis = unit.layer.contraction.channel_pair
    contract = contraction_of(unit.layer.contraction)
    others = tuple(axis for axis in range(inputs.ndim) if axis != input_axis % inputs.ndim)
    magnitude = jnp.maximum(jnp.mean(jnp.abs(inputs), others), 1e-4)
    shape = [1] * layer.weight.ndim
    shape[weight_axis] = -1

    def attempt(
        alpha: Array, magnitude: Array, bits: Array, weight: Array, x: Array, target: Array
    ) -> tuple[Array, Array, dict[str, Any]]:
        scale = magnitude**alpha
        scale = scale / jnp.sqrt(scale.max() * scale.min())
        kernel, x = weight * scale.reshape(shape), jnp.moveaxis(jnp.moveaxis(x, input_axis, -1) / scale, -1, input_axis)
        ranges = {"weight": unit.weight and unit.weight.init(kernel, bits[0]), "input": None}
        if unit.input is not None:
            ranges["input"] = unit.input.init(x, bits[1])
            x = unit.input.apply(ranges["input"], x, bits[1])
        assert unit.weight is not None  # is_rounded
        output = contract(unit.weight.apply(ranges["weight"], kernel, bits[0]), x)
        return jnp.mean(jnp.square(output - target)), scale, ranges | {"kernel": kernel}

    target = run(contract, layer.float_weight, layer.float_inputs)
    alphas = jnp.arange(steps, dtype=jnp.float32) / steps
    rest = (magnitude, bits, layer.weight, inputs, target)
    program = compiled(attempt, (alphas[0], *rest))
    errors = [program(alpha, *rest)[0] for alpha in alphas]
    best = alphas[int(jnp.argmin(jnp.asarray(errors)))]
    if best == 0:
        return own
    _, scale, changed = program(best, *rest)
    return with_kernel(own, **changed, divisor=scale * own.get("divisor", 1.0))
