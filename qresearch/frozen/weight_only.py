"""Dense layers with packed kernels and float inputs, as products of the matrices that kernels for them take."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.graph import Contraction
from qresearch.kernels import KernelWeights, prepare, weight_only_dot
from qresearch.numerics.codes import Codes
from qresearch.numerics.packing import QTensor, from_qtensor, to_qtensor


def kernel_weights(contraction: Contraction, tensor: QTensor) -> KernelWeights | None:
    """A packed kernel in the layout of ``weight_only_dot``; None where it is no dense layer's or has no such layout."""
    if contraction.kind != "dot_general" or not 2 <= tensor.bits <= 8 or tensor.codebook is not None:
        return None
    (_, batch) = dict(contraction.parameters)["dimension_numbers"]
    if batch[0]:
        return None
    return prepare(to_qtensor(_as_matrix(contraction, from_qtensor(tensor)), tensor.bits, tensor.signed))


def weight_only_output(contraction: Contraction, weights: KernelWeights, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The output of a dense layer for its input x, in the contraction's own order of axes and the dtype of x."""
    summed = contraction.input_contracting
    free = tuple(axis for axis in range(x.ndim) if axis not in summed)
    rows = x.transpose(*free, *summed).reshape(*(x.shape[axis] for axis in free), weights.shape[0])
    channels = tuple(contraction.weight_shape[axis] for axis in contraction.channel_axes)
    output = weight_only_dot(rows, weights).reshape(*rows.shape[:-1], *channels)
    if contraction.weight_operand == 1:
        return output
    return output.transpose(*range(len(free), output.ndim), *range(len(free)))  # the left operand's axes come first


def _as_matrix(contraction: Contraction, codes: Codes) -> Codes:
    """Codes [K, N], or [groups, size, N] where the last summed axis is in groups."""
    summed, rank, shape = contraction.weight_contracting, len(contraction.weight_shape), codes.values.shape
    split = codes.values.ndim > rank

    def place(axis: int) -> int:
        return axis + 1 if split and axis > summed[-1] else axis

    sizes = (summed[-1] + 1,) if split else ()
    order = (*map(place, summed), *sizes, *(place(axis) for axis in range(rank) if axis not in summed))
    alike = sizes or summed  # the axes along which a scale is the same

    def matrix(value: Array, full: tuple[int, ...]) -> Array:
        moved = jnp.broadcast_to(value, full).transpose(order)
        last = len(summed) + len(sizes)
        depth, features = math.prod(moved.shape[:last]), math.prod(moved.shape[last:])
        return moved.reshape(*((-1, moved.shape[last - 1]) if split else (depth,)), features)

    ones = tuple(1 if axis in alike else size for axis, size in enumerate(shape))
    return Codes(matrix(codes.values, shape), matrix(codes.scale, ones), matrix(codes.zero_point, ones))
