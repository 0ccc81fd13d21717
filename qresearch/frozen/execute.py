"""How a frozen layer is computed: in integers, with the same codes held in float32, or decoded into float."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from qresearch.frozen.layer import FrozenLayer
from qresearch.frozen.weight_only import weight_only_output
from qresearch.graph import Call, Contraction
from qresearch.numerics.codes import Codes
from qresearch.numerics.fixed_point import Rescale
from qresearch.numerics.integer import integer_dot, simulated_dot, split_axis, split_dimension_numbers
from qresearch.numerics.integer_conv import Convolution, integer_conv, simulated_conv
from qresearch.numerics.packing import narrow
from qresearch.quantizers import Quantizer
from qresearch.units import Unit, at_rank, corrected_input, corrected_output, quantized_output


class Contract(NamedTuple):
    """The contractions of codes."""

    dot: Callable[..., Array]
    conv: Callable[..., Array]


INTEGER, CODES = Contract(integer_dot, integer_conv), Contract(simulated_dot, simulated_conv)
# integer: int8 codes summed in int32. codes: the same codes held in float32, equal bit for bit. dequantized: decoded,
# then the model's own contraction in float, as in training. Layers without an integer path are decoded in all three.
EXECUTIONS: dict[str, Contract | None] = {"integer": INTEGER, "codes": CODES, "dequantized": None}


def frozen_output(unit: Unit, layer: FrozenLayer, contract: Contract | None, rescale: Rescale, call: Call) -> Array:
    """The output of a call. Its state: ``weight`` Codes, ``packed`` KernelWeights or ``kernel`` decoded; bits [2];
    qparams, as in training.
    """
    if layer.path == "integer" and contract is not None:
        return _product_of_codes(unit, layer, contract, rescale, call)
    if "packed" in call.state:
        x = corrected_input(unit, call.state["qparams"], call.input)
        output = weight_only_output(call.site.contraction, call.state["packed"], x)
        return corrected_output(call.state["qparams"], output)
    state = dict(call.state)
    kernel = state.get("kernel", call.weight)
    if not unit.layer.contraction.product:
        state["kernel"] = kernel.astype(call.weight.dtype)
    return quantized_output(unit, call._replace(state=state))


def _product_of_codes(unit: Unit, layer: FrozenLayer, contract: Contract, rescale: Rescale, call: Call) -> Array:
    contraction, found = unit.layer.contraction, call.state["qparams"]
    encode = partial(_encode, bits=call.state["bits"])
    assert unit.input is not None
    assert unit.weight is not None
    x = corrected_input(unit, found, call.input)
    x_codes = encode(unit.input, found["input"], x, len(contraction.input_shape), column=1, signed=layer.input_signed)
    if contraction.product:
        rank, signed = len(contraction.weight_shape), layer.weight_signed
        weight = encode(unit.weight, found["weight"], call.weight, rank, column=0, signed=signed)
    else:
        weight = call.state["weight"]
    output = _contract(call.site.contraction, contract, rescale, weight, x_codes)
    like = jax.eval_shape(call.contract, call.weight, call.input)
    return corrected_output(found, output.astype(like.dtype))


def _contract(
    contraction: Contraction, contract: Contract, rescale: Rescale, weight: Codes, x: Codes
) -> Float[Array, "..."]:
    parameters = dict(contraction.parameters)
    if contraction.kind == "conv_general_dilated":
        convolution = Convolution(**{name: parameters[name] for name in Convolution._fields})
        return contract.conv(x, weight, convolution, rescale)
    numbers = parameters["dimension_numbers"]
    axes = contraction.weight_contracting[-1], contraction.input_contracting[-1]  # of the pair that groups split
    split = weight.values.ndim > len(contraction.weight_shape), x.values.ndim > len(contraction.input_shape)
    if any(split):
        size = weight.values.shape[axes[0] + 1] if split[0] else x.values.shape[axes[1] + 1]
        weight = weight if split[0] else split_axis(weight, axes[0], size)
        x = x if split[1] else split_axis(x, axes[1], size)
        numbers = split_dimension_numbers(numbers, len(contraction.weight_contracting) - 1)
    operands = (weight, x) if contraction.weight_operand == 0 else (x, weight)
    return contract.dot(*operands, numbers, rescale)


def _encode(
    quantizer: Quantizer, qparams: Any, x: Array, rank: int, *, bits: Array, column: int, signed: bool
) -> Codes:
    """The codes of a data operand, in its own rank: qparams have the rank of the unit's first use."""
    codes = quantizer.encode(qparams, at_rank(x, rank), bits[column])
    values, scale, zero_point = (_own_rank(part, x, rank) for part in (codes.values, codes.scale, codes.zero_point))
    return narrow(Codes(values, scale, zero_point), signed)


def _own_rank(part: Array, x: Array, rank: int) -> Array:
    """Undoes ``at_rank`` on values or scales, which may have one more axis for groups."""
    if x.ndim == rank:
        return part
    if x.ndim < rank:
        return part.reshape(part.shape[rank - x.ndim :])
    merged = x.shape[: x.ndim - rank + 1]
    return part.reshape(*(merged if part.shape[0] > 1 else (1,) * len(merged)), *part.shape[1:])
