"""A layer's contraction as a function, rebuilt from its static facts: for inputs of any number of examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax import Array, lax

from qresearch.graph.layer import Contraction


def contraction_of(contraction: Contraction) -> Callable[[Array, Array], Array]:
    """``contract(weight, input) -> output`` with the equation's own parameters, outside the function it came from."""
    primitive = {"dot_general": lax.dot_general_p, "conv_general_dilated": lax.conv_general_dilated_p}[contraction.kind]
    parameters = dict(contraction.parameters)

    def contract(weight: Array, input: Array) -> Array:
        operands = (weight, input) if contraction.weight_operand == 0 else (input, weight)
        return primitive.bind(*operands, **parameters)

    return contract


def output_channels(contraction: Contraction) -> tuple[int, ...]:
    """The axes of the output that the kernel's output channels become, in their order."""
    parameters = dict(contraction.parameters)
    if contraction.kind == "conv_general_dilated":
        return (parameters["dimension_numbers"].out_spec[1],)
    (contracting, _), batch = parameters["dimension_numbers"]
    together = len(batch[0])
    sides = [len(contraction.weight_shape), len(contraction.input_shape)]
    free = [rank - len(contracting) - together for rank in sides]
    first = together if contraction.weight_operand == 0 else together + free[1]
    return (*range(together), *range(first, first + free[0]))


class Matrices(NamedTuple):
    """A contraction as products of matrices: for every group, rows [rows, fan_in] times a matrix [fan_in, channels]."""

    rows: Callable[[Array], Array]  # input -> [groups, rows, fan_in]
    split: Callable[[Array], Array]  # kernel -> [groups, fan_in, channels]
    join: Callable[[Array], Array]  # its inverse


def as_matrices(contraction: Contraction) -> Matrices:
    """The matrices of a layer: one group, or one for every feature group of a convolution and batch index of a dot."""
    return (_convolution if contraction.kind == "conv_general_dilated" else _dot)(contraction)


def _dot(contraction: Contraction) -> Matrices:
    (contracting, batch) = dict(contraction.parameters)["dimension_numbers"]
    side, other = contraction.weight_operand, 1 - contraction.weight_operand
    shape, order = contraction.weight_shape, (*batch[side], *contracting[side])
    free = tuple(axis for axis in range(len(shape)) if axis not in order)
    groups, fan_in = (math.prod(shape[axis] for axis in axes) for axes in (batch[side], contracting[side]))

    def rows(x: Array) -> Array:
        own = (*batch[other], *(i for i in range(x.ndim) if i not in (*batch[other], *contracting[other])))
        return x.transpose(*own, *contracting[other]).reshape(groups, -1, fan_in)

    def split(kernel: Array) -> Array:
        return kernel.transpose(*order, *free).reshape(groups, fan_in, -1)

    def join(matrices: Array) -> Array:
        transposed = matrices.reshape([shape[axis] for axis in (*order, *free)])
        return transposed.transpose(np.argsort((*order, *free)))

    return Matrices(rows, split, join)


def _convolution(contraction: Contraction) -> Matrices:
    parameters = dict(contraction.parameters)
    numbers, groups = parameters["dimension_numbers"], contraction.feature_groups
    shape, (out, *summed) = contraction.weight_shape, numbers.rhs_spec
    fan_in = math.prod(shape[axis] for axis in summed)
    window = tuple(shape[axis] for axis in numbers.rhs_spec[2:])

    def rows(x: Array) -> Array:
        # Patches list the channels first and the window after them, as the kernel's axes are taken below.
        patches = lax.conv_general_dilated_patches(
            x.transpose(numbers.lhs_spec),
            window,
            parameters["window_strides"],
            parameters["padding"],
            parameters["lhs_dilation"],
            parameters["rhs_dilation"],
        )
        by_group = patches.reshape(patches.shape[0], groups, fan_in, -1)
        return by_group.transpose(1, 0, 3, 2).reshape(groups, -1, fan_in)

    def split(kernel: Array) -> Array:
        by_group = kernel.transpose(out, *summed).reshape(groups, -1, fan_in)
        return by_group.transpose(0, 2, 1)

    def join(matrices: Array) -> Array:
        transposed = matrices.transpose(0, 2, 1).reshape([shape[axis] for axis in (out, *summed)])
        return transposed.transpose(np.argsort((out, *summed)))

    return Matrices(rows, split, join)
