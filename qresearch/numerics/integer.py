"""Integer products: int8 codes multiplied into int32, equal to the simulation that holds the codes in float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qresearch.errors import GraphError
from qresearch.numerics.codes import Codes
from qresearch.numerics.fixed_point import Rescale, float_rescale

Axes = tuple[int, ...]
DimensionNumbers = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]  # as lax.dot_general: contracting pairs, batch pairs


def integer_dot(
    lhs: Codes, rhs: Codes, dimension_numbers: DimensionNumbers, rescale: Rescale = float_rescale
) -> Float[Array, "..."]:
    """``lax.dot_general`` of two quantized tensors: int8 products summed in int32, then scaled, in float32.

    sum (a - za) (b - zb) = sum a b - za sum b - zb sum a + n za zb, times sa sb. int32 holds four times that sum, since
    zero-points may be halves (mid-rise grids: statsq, DoReFa weights); GraphError for any other that is not whole. The
    codes have the dtype int8 or uint8 (``narrow``, ``from_qtensor``). An axis that is summed over and along which a
    scale varies is summed after the scaling: so are the groups of ``per_group``, for which the other operand and the
    dimension numbers are split too (``split_axis``, ``split_dimension_numbers``). No sum overflows below 2^13 products,
    whatever the codes. rescale: from the sum to values, one of ``RESCALES``.
    """
    return _dot(lhs, rhs, dimension_numbers, _integer_dot, rescale)


def simulated_dot(
    lhs: Codes, rhs: Codes, dimension_numbers: DimensionNumbers, rescale: Rescale = float_rescale
) -> Float[Array, "..."]:
    """The same with the codes held in float32: equal bit for bit while no sum of |products| exceeds 2^24."""
    return _dot(lhs, rhs, dimension_numbers, _float_dot, rescale)


def split_axis(codes: Codes, axis: int, size: int) -> Codes:
    """Codes whose ``axis`` is split in two, (groups, size), as ``per_group(axis, size)`` splits the other operand's."""

    def split(value: Array) -> Array:
        if value.shape[axis] == 1:
            return jnp.expand_dims(value, axis)
        return value.reshape(*value.shape[:axis], -1, size, *value.shape[axis + 1 :])

    axis %= codes.values.ndim
    values = codes.values.reshape(*codes.values.shape[:axis], -1, size, *codes.values.shape[axis + 1 :])
    return codes._replace(values=values, scale=split(codes.scale), zero_point=split(codes.zero_point))


def split_dimension_numbers(numbers: DimensionNumbers, position: int) -> DimensionNumbers:
    """The dimension numbers after ``split_axis`` of both axes of the summed pair at ``position``."""
    (left, right), (left_batch, right_batch) = numbers

    def moved(axes: Axes, split: int) -> Axes:
        return tuple(axis + (axis > split) for axis in axes)

    new_left = (*moved(left, left[position]), left[position] + 1)
    new_right = (*moved(right, right[position]), right[position] + 1)
    return (new_left, new_right), (moved(left_batch, left[position]), moved(right_batch, right[position]))


def as_int8(codes: Codes) -> tuple[Array, Array]:
    """int8 codes and twice their int32 zero-points, for the same numbers: unsigned codes are moved down by 128."""
    twice = _twice_zero_point(codes).astype(jnp.int32)
    if codes.values.dtype in (jnp.int8, jnp.int4, jnp.int2):  # XLA on CPU compiles no int4 by int4 into int32
        return codes.values.astype(jnp.int8), twice
    if codes.values.dtype in (jnp.uint8, jnp.uint4, jnp.uint2):
        return (codes.values.astype(jnp.int32) - 128).astype(jnp.int8), twice - 256
    raise GraphError(f"integer contractions take int8 or uint8 codes, got {codes.values.dtype}: use narrow(...) first")


def centred(codes: Codes) -> Array:
    """code - zero_point in float32, a whole number of halves."""
    return codes.values.astype(jnp.float32) - 0.5 * _twice_zero_point(codes)


def _twice_zero_point(codes: Codes) -> Array:
    """2 zero_point, whole numbers in float32. (A traced zero-point cannot be looked at, and is rounded.)"""
    if codes.codebook is not None:
        raise GraphError("codes with a codebook have no integer contraction: decode them, or use a uniform method")
    twice = 2.0 * codes.zero_point
    if not isinstance(twice, jax.core.Tracer) and bool(jnp.any(twice != jnp.round(twice))):
        raise GraphError(
            "an integer contraction needs zero-points that are whole or half numbers, got others (a learned offset, or"
            " bins between the extremes): decode the codes, or use a symmetric grid"
        )
    return jnp.round(twice)


def in_quarters(total: Float[Array, "..."]) -> Int[Array, "..."]:
    """A sum of products of halves, held in float32, as int32 holds it four times."""
    return (4.0 * total).astype(jnp.int32)


def _dot(
    lhs: Codes,
    rhs: Codes,
    numbers: DimensionNumbers,
    accumulate: Callable[[Codes, Codes, DimensionNumbers], Array],
    rescale: Rescale,
) -> Array:
    (left, right), (left_batch, right_batch) = numbers
    varies = [_varies(lhs, i) or _varies(rhs, j) for i, j in zip(left, right)]
    inner = [pair for pair, late in zip(zip(left, right), varies) if not late]
    outer = [pair for pair, late in zip(zip(left, right), varies) if late]  # batch axes until they are summed, scaled
    batch = [*zip(left_batch, right_batch), *outer]
    numbers = (_unzip(inner), _unzip(batch))
    lhs_scale, rhs_scale = _to_output(lhs.scale, rhs.scale, numbers)
    scaled = rescale(accumulate(lhs, rhs, numbers), lhs_scale * rhs_scale)
    return jnp.sum(scaled, axis=tuple(range(len(left_batch), len(batch)))) if outer else scaled


def _varies(codes: Codes, axis: int) -> bool:
    return codes.scale.shape[axis] > 1 or codes.zero_point.shape[axis] > 1


def _integer_dot(lhs: Codes, rhs: Codes, numbers: DimensionNumbers) -> Array:
    (a, za), (b, zb) = as_int8(lhs), as_int8(rhs)
    (left, right), _ = numbers
    total = jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.int32)
    a_sums = jnp.sum(a, axis=left, keepdims=True, dtype=jnp.int32)
    b_sums = jnp.sum(b, axis=right, keepdims=True, dtype=jnp.int32)
    (a_sums, b_sums), (za, zb) = _to_output(a_sums, b_sums, numbers), _to_output(za, zb, numbers)
    products = math.prod(a.shape[axis] for axis in left)
    return 4 * total - 2 * za * b_sums - 2 * zb * a_sums + products * (za * zb)


def _float_dot(lhs: Codes, rhs: Codes, numbers: DimensionNumbers) -> Array:
    # HIGHEST: by default a GPU may round the codes to TF32.
    return in_quarters(jax.lax.dot_general(centred(lhs), centred(rhs), numbers, precision=jax.lax.Precision.HIGHEST))


def _to_output(lhs: Array, rhs: Array, numbers: DimensionNumbers) -> tuple[Array, Array]:
    """Arrays of the operands' rank, of size 1 along summed axes, on the axes of the result: batch, lhs, rhs."""
    (left, right), (left_batch, right_batch) = numbers
    left_free = tuple(axis for axis in range(lhs.ndim) if axis not in left + left_batch)
    right_free = tuple(axis for axis in range(rhs.ndim) if axis not in right + right_batch)
    shape = [lhs.shape[axis] for axis in left_batch + left_free] + [1] * len(right_free)
    lhs = lhs.transpose(left_batch + left_free + left).reshape(shape)
    shape = [rhs.shape[axis] for axis in right_batch] + [1] * len(left_free) + [rhs.shape[axis] for axis in right_free]
    return lhs, rhs.transpose(right_batch + right_free + right).reshape(shape)


def _unzip(pairs: list[tuple[int, int]]) -> tuple[Axes, Axes]:
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
