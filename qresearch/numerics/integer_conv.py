"""Integer convolutions: int8 codes multiplied into int32, equal to the simulation with the codes in float32."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from qresearch.errors import GraphError
from qresearch.numerics.codes import Codes
from qresearch.numerics.fixed_point import Rescale, float_rescale
from qresearch.numerics.integer import as_int8, centred, in_quarters


class Convolution(NamedTuple):
    """The static arguments of ``lax.conv_general_dilated``, as it takes them."""

    window_strides: Sequence[int]
    padding: str | Sequence[tuple[int, int]]
    lhs_dilation: Sequence[int] | None = None
    rhs_dilation: Sequence[int] | None = None
    dimension_numbers: jax.lax.ConvDimensionNumbers | tuple[str, str, str] | None = None
    feature_group_count: int = 1


def integer_conv(
    lhs: Codes, rhs: Codes, convolution: Convolution, rescale: Rescale = float_rescale
) -> Float[Array, "..."]:
    """``lax.conv_general_dilated`` of a quantized input ``lhs`` and kernel ``rhs``: int8 summed in int32, then scaled.

    Padding and the gaps of a dilated input hold the value 0, that is the code zero_point. They take part in no sum, so
    each of the four terms of (a - za) (b - zb) is a convolution with zero padding, of ones where a or b is missing.
    The input's scale may vary along its batch axis, the kernel's along its output channels: not along what is summed.
    """
    numbers = _conv_numbers(lhs, rhs, convolution)
    (a, za), (b, zb) = as_int8(lhs), as_int8(rhs)
    groups, batch, channel = convolution.feature_group_count, numbers.lhs_spec[0], numbers.rhs_spec[0]
    ones_a = jnp.ones(_with(a.shape, batch, 1), jnp.int8)
    ones_b = jnp.ones(_with(b.shape, channel, groups), jnp.int8)  # one output channel for each group of input channels
    convolve = partial(_convolve, convolution, numbers, jnp.int32)
    for_channels = partial(jnp.repeat, repeats=b.shape[channel] // groups, axis=numbers.out_spec[1])
    za, zb = _in_output(za, zb, numbers)
    total = 4 * convolve(a, b) - 2 * za * convolve(ones_a, b)
    total = total - 2 * zb * for_channels(convolve(a, ones_b)) + za * zb * for_channels(convolve(ones_a, ones_b))
    return _rescaled(total, lhs, rhs, numbers, rescale)


def simulated_conv(
    lhs: Codes, rhs: Codes, convolution: Convolution, rescale: Rescale = float_rescale
) -> Float[Array, "..."]:
    """The same with the codes held in float32: equal bit for bit while no sum of |products| exceeds 2^24."""
    numbers = _conv_numbers(lhs, rhs, convolution)
    total = _convolve(convolution, numbers, jnp.float32, centred(lhs), centred(rhs))
    return _rescaled(in_quarters(total), lhs, rhs, numbers, rescale)


def _rescaled(
    quarters: Array, lhs: Codes, rhs: Codes, numbers: jax.lax.ConvDimensionNumbers, rescale: Rescale
) -> Array:
    lhs_scale, rhs_scale = _in_output(lhs.scale, rhs.scale, numbers)
    return rescale(quarters, lhs_scale * rhs_scale)


def _conv_numbers(lhs: Codes, rhs: Codes, convolution: Convolution) -> jax.lax.ConvDimensionNumbers:
    """The resolved dimension numbers, if the scales allow an integer convolution."""
    if lhs.values.ndim != rhs.values.ndim:
        raise GraphError(
            f"an integer convolution needs an input and a kernel of one rank, got the shapes {lhs.values.shape} and"
            f" {rhs.values.shape}; codes in groups can not be convolved: use per_tensor or per_channel"
        )
    numbers = jax.lax.conv_dimension_numbers(lhs.values.shape, rhs.values.shape, convolution.dimension_numbers)
    for role, codes, axis in (("input", lhs, numbers.lhs_spec[0]), ("kernel", rhs, numbers.rhs_spec[0])):
        if any(size > 1 for other, size in enumerate(codes.scale.shape) if other != axis):
            raise GraphError(
                f"the {role} of an integer convolution has one scale for everything that is summed: its scale may vary"
                f" along axis {axis} only, got the shape {codes.scale.shape}"
            )
    return numbers


def _convolve(
    convolution: Convolution, numbers: jax.lax.ConvDimensionNumbers, dtype: DTypeLike, lhs: Array, rhs: Array
) -> Array:
    return jax.lax.conv_general_dilated(
        lhs,
        rhs,
        **convolution._replace(dimension_numbers=numbers)._asdict(),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )


def _in_output(lhs: Array, rhs: Array, numbers: jax.lax.ConvDimensionNumbers) -> tuple[Array, Array]:
    """An array that varies along the input's batch axis at most, and one along the kernel's output channels."""
    ones, (batch, channel, *_) = (1,) * lhs.ndim, numbers.out_spec
    return lhs.reshape(_with(ones, batch, -1)), rhs.reshape(_with(ones, channel, -1))


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])
