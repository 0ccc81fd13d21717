"""From a contraction's equation to its static facts."""

from __future__ import annotations

import math
from typing import Any

from qresearch.graph.layer import Contraction

CONTRACTIONS = ("dot_general", "conv_general_dilated")
RAGGED = "ragged_dot_general"  # a contraction that is counted, but not (yet) a layer


def describe(equation: Any, weight_operand: int) -> Contraction:
    """The facts of a ``dot_general`` or convolution equation whose kernel is operand ``weight_operand``."""
    shapes = [tuple(atom.aval.shape) for atom in equation.invars[:2]]
    weight_shape, input_shape = shapes[weight_operand], shapes[1 - weight_operand]
    dot = equation.primitive.name == "dot_general"
    axes = _dot_axes(equation, weight_operand) if dot else _convolution_axes(equation)
    return Contraction(
        kind=equation.primitive.name,
        weight_operand=weight_operand,
        weight_shape=weight_shape,
        input_shape=input_shape,
        channel_axes=axes[0],
        weight_contracting=axes[1],
        input_contracting=axes[2],
        macs=macs(equation),
        feature_groups=1 if dot else equation.params["feature_group_count"],
        parameters=tuple(equation.params.items()),
    )


def describe_gather(equation: Any) -> Contraction:
    """The facts of an embedding look-up: a ``gather`` from a kernel, its operand 0, at indices, its input."""
    table, indices = (tuple(atom.aval.shape) for atom in equation.invars[:2])
    numbers = equation.params["dimension_numbers"]
    rows = {int(axis) for axis in (*numbers.start_index_map, *numbers.operand_batching_dims)}
    return Contraction(
        kind=equation.primitive.name,
        weight_operand=0,
        weight_shape=table,
        input_shape=indices,
        channel_axes=tuple(sorted(rows)),
        weight_contracting=tuple(axis for axis in range(len(table)) if axis not in rows),
        input_contracting=(),
        macs=0,
        parameters=tuple(equation.params.items()),
    )


def macs(equation: Any) -> int:
    """Multiply-accumulates of one execution. A convolution's padding taps count (XLA's cost analysis leaves them
    out).
    """
    output = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (left, _), _ = equation.params["dimension_numbers"]
        return output * math.prod(equation.invars[0].aval.shape[axis] for axis in left)
    if equation.primitive.name == RAGGED:
        return _ragged_macs(equation)
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return output * math.prod(kernel) // out_features


def _ragged_macs(equation: Any) -> int:
    """Every element of the left operand meets each output column of the right one once, in the group it belongs to."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (_, contracting), (_, batch) = numbers.dot_dimension_numbers
    left, right = (atom.aval.shape for atom in equation.invars[:2])
    elsewhere = {*contracting, *batch, *numbers.rhs_group_dimensions}
    return math.prod(left) * math.prod(size for axis, size in enumerate(right) if axis not in elsewhere)


def _dot_axes(equation: Any, weight_operand: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    contracting, _ = equation.params["dimension_numbers"]
    rank = len(equation.invars[weight_operand].aval.shape)
    summed = tuple(contracting[weight_operand])
    # Batch axes of a kernel (one matrix per expert, say) are channels too: every one has values of its own.
    channels = tuple(axis for axis in range(rank) if axis not in summed)
    return channels, summed, tuple(contracting[1 - weight_operand])


def _convolution_axes(equation: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    numbers = equation.params["dimension_numbers"]
    out_axis, *summed = numbers.rhs_spec
    return (out_axis,), tuple(summed), (numbers.lhs_spec[1],)
