"""Primitives that sum: products, convolutions, pooling and reductions."""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from qresearch.errors import GraphError
from qresearch.export.onnx.builder import Builder, Tensor, Value, common_layout, elements, plain

REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
}


def dot_general(b: Builder, equation: Any, values: list[Value]) -> Value:
    """MatMul where one axis is summed, which every runtime has a fast kernel for; else Einsum."""
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    left_free = tuple(axis for axis in range(ranks[0]) if axis not in (*left, *left_batch))
    right_free = tuple(axis for axis in range(ranks[1]) if axis not in (*right, *right_batch))
    together, rank = len(left_batch), len(equation.outvars[0].aval.shape)
    if len(left) == 1 and len(right_free) == 1 and (len(left_free) == 1 or not together):
        names = (
            b.named(values[0], (*left_batch, *left_free, *left)),
            b.named(values[1], (*right_batch, *right, *right_free)),
        )
        return Tensor(b.node("MatMul", *names), plain(rank))
    if len(left) == 1 and len(left_free) == 1 and not together:  # the other way round: a kernel on the left
        names = b.named(values[1], (*right_free, *right)), b.named(values[0], (*left, *left_free))
        return Tensor(b.node("MatMul", *names), (*range(1, rank), 0))
    return Tensor(_einsum(b, equation, values), plain(rank))


def _einsum(b: Builder, equation: Any, values: list[Value]) -> str:
    contracting, batch = equation.params["dimension_numbers"]
    letters = iter(string.ascii_lowercase)
    terms = [["" for _ in atom.aval.shape] for atom in equation.invars]
    for pairs in (batch, contracting):
        for one, other in zip(*pairs):
            terms[0][one] = terms[1][other] = next(letters)
    shared = [terms[0][axis] for axis in batch[0]]
    free = []
    for term in terms:
        for axis, letter in enumerate(term):
            if not letter:
                term[axis] = next(letters)
                free.append(term[axis])
    text = f"{''.join(terms[0])},{''.join(terms[1])}->{''.join((*shared, *free))}"
    return b.node("Einsum", *map(b.named, values), equation=text)


def convolution(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Conv, which is [batch, channel, ...] times [channel out, channel in, ...] in ONNX."""
    params = equation.params
    if params["batch_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise GraphError("a transposed convolution, or one with groups of examples, is not written to ONNX")
    numbers = params["dimension_numbers"]
    low, high = zip(*params["padding"])
    name = b.node(
        "Conv",
        b.named(values[0], numbers.lhs_spec),
        b.named(values[1], numbers.rhs_spec),
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[int(size) for size in (*low, *high)],
        group=params["feature_group_count"],
    )
    b.channels[name] = equation.outvars[0].aval.shape[numbers.out_spec[1]]
    return Tensor(name, tuple(numbers.out_spec))


def reduce(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Over some axes, which are dropped."""
    rank, axes = len(equation.invars[0].aval.shape), tuple(equation.params["axes"])
    layout = common_layout(values, rank)
    places = sorted(layout.index(axis) for axis in axes)
    operator = REDUCTIONS[equation.primitive.name]
    name = b.node(operator, b.named(values[0], layout), b.integers(places), keepdims=0)
    kept = [axis for axis in range(rank) if axis not in axes]
    return Tensor(name, tuple(kept.index(axis) for axis in layout if axis in kept))


def max_pool(b: Builder, equation: Any, values: list[Value]) -> Value:
    """``reduce_window_max``: what is padded never is the largest."""
    return _pool(b, equation, values[0], "MaxPool")


def sum_pool(b: Builder, equation: Any, values: list[Value]) -> Value:
    """``reduce_window_sum``: the average, padding counted, times the window's size."""
    average = _pool(b, equation, values[0], "AveragePool", count_include_pad=1)
    size = np.asarray(elements(equation.params["window_dimensions"]), equation.invars[0].aval.dtype)
    return Tensor(b.node("Mul", average.name, b.constant(size)), average.layout)


def _pool(b: Builder, equation: Any, value: Value, operator: str, **attributes: Any) -> Tensor:
    params = equation.params
    window, strides, padding = (params[name] for name in ("window_dimensions", "window_strides", "padding"))
    still = [axis for axis, size in enumerate(window) if (size, strides[axis], tuple(padding[axis])) == (1, 1, (0, 0))]
    if len(still) < 2 or any(step != 1 for step in params["base_dilation"]):
        raise GraphError(
            "this window is not written to ONNX: expected one over all axes but two, without dilated input"
        )
    spatial = [axis for axis in range(len(window)) if axis not in (still[0], still[-1])]
    layout = (still[0], still[-1], *spatial)
    sides = [[int(padding[axis][side]) for axis in spatial] for side in (0, 1)]
    name = b.node(
        operator,
        b.named(value, layout),
        kernel_shape=[window[axis] for axis in spatial],
        strides=[strides[axis] for axis in spatial],
        dilations=[params["window_dilation"][axis] for axis in spatial],
        pads=[*sides[0], *sides[1]],
        **attributes,
    )
    return Tensor(name, layout)
