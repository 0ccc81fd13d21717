from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integer_cases import BITS, PROPERTY, draw_codes, exact

from qresearch.errors import GraphError
from qresearch.numerics.codes import decode
from qresearch.numerics.integer_conv import Convolution, integer_conv, simulated_conv

LAYOUTS = (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NCHW"), ("CWNH", "WOHI", "HNCW"))


def numpy_conv(a: np.ndarray, b: np.ndarray, convolution: Convolution) -> np.ndarray:
    """The definition, in float64: zeros between and around the input, then a sum over every tap of the kernel."""
    numbers = jax.lax.conv_dimension_numbers(a.shape, b.shape, convolution.dimension_numbers)
    a, b = a.transpose(numbers.lhs_spec), b.transpose(numbers.rhs_spec)  # to (N, C, ...) and (O, I, ...)
    spatial, groups = a.ndim - 2, convolution.feature_group_count
    spread = [(size - 1) * step + 1 for size, step in zip(a.shape[2:], convolution.lhs_dilation)]
    padded = np.zeros((*a.shape[:2], *(s + sum(p) for s, p in zip(spread, convolution.padding))))
    inside = [slice(p[0], p[0] + s, step) for s, p, step in zip(spread, convolution.padding, convolution.lhs_dilation)]
    padded[(slice(None), slice(None), *inside)] = a
    reach = [(size - 1) * step + 1 for size, step in zip(b.shape[2:], convolution.rhs_dilation)]
    counts = [(p - r) // s + 1 for p, r, s in zip(padded.shape[2:], reach, convolution.window_strides)]
    total = np.zeros((a.shape[0], b.shape[0], *counts))
    channels = np.split(np.arange(a.shape[1]), groups), np.split(np.arange(b.shape[0]), groups)
    for tap in itertools.product(*(range(size) for size in b.shape[2:])):
        starts = [t * d for t, d in zip(tap, convolution.rhs_dilation)]
        window = [slice(s, s + n * w, w) for s, n, w in zip(starts, counts, convolution.window_strides)]
        for ins, outs in zip(*channels):
            seen = padded[:, ins][(slice(None), slice(None), *(slice(w.start, w.stop, w.step) for w in window))]
            total[:, outs] += np.einsum(
                "nc...,oc->no...", seen[(..., *(slice(n) for n in counts))], b[(outs, slice(None), *tap)]
            )
    assert spatial == len(counts)
    return total.transpose(np.argsort(numbers.out_spec))


@st.composite
def convolutions(draw):
    """Shapes and static arguments of 2-d convolutions: every layout, stride, padding, dilation and grouping."""
    pick = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    two = lambda low, high: (pick(low, high), pick(low, high))  # noqa: E731
    groups, per_group = draw(st.sampled_from([(1, 3), (2, 2), (3, 1), (4, 1)]))  # channels of 1: depthwise
    kernel, dilation = two(1, 3), two(1, 2)
    size = [(k - 1) * d + 1 + pick(0, 4) for k, d in zip(kernel, dilation)]
    sizes = {"N": pick(1, 3), "C": groups * per_group, "H": size[0], "W": size[1]}
    kernel_sizes = {"O": groups * pick(1, 3), "I": per_group, "H": kernel[0], "W": kernel[1]}
    layout = draw(st.sampled_from(LAYOUTS))
    convolution = Convolution(two(1, 2), (two(0, 2), two(0, 2)), two(1, 2), dilation, layout, groups)
    shapes = tuple(sizes[axis] for axis in layout[0]), tuple(kernel_sizes[axis] for axis in layout[1])
    return *shapes, convolution


@PROPERTY
@given(convolutions(), st.tuples(*[st.booleans()] * 6), st.integers(0, 2**32 - 1))
def test_an_integer_convolution_is_exact_and_is_the_simulation(shapes, choices, seed):
    *shapes, convolution = shapes
    signed, affine, channels = choices[:2], choices[2:4], choices[4:]
    axes = convolution.dimension_numbers[0].index("N"), convolution.dimension_numbers[1].index("O")
    varying = [(axis,) if channel else () for axis, channel in zip(axes, channels)]
    integer, simulated = (jax.jit(partial(f, convolution=convolution)) for f in (integer_conv, simulated_conv))
    generator = np.random.default_rng(seed)
    batch, channel = (convolution.dimension_numbers[2].index(axis) for axis in "NC")
    for bits in zip(BITS, generator.permutation(BITS)):
        lhs, rhs = (draw_codes(generator, *each) for each in zip(shapes, bits, signed, affine, varying))
        found = np.asarray(integer(lhs, rhs))
        along = lambda codes, axis: np.asarray(codes.scale).reshape([-1 if i == axis else 1 for i in range(4)])  # noqa: E731
        total = numpy_conv(exact(lhs), exact(rhs), convolution)
        wanted = total.astype(np.float32) * (along(lhs, batch) * along(rhs, channel))
        np.testing.assert_array_equal(found, wanted, err_msg=f"{bits} bits")
        np.testing.assert_array_equal(found, simulated(lhs, rhs), err_msg=f"{bits} bits")


def test_padding_holds_the_value_zero_and_not_the_code_zero():
    """One row of ones under a kernel of ones: the result counts the taps inside, whatever the zero-point is."""
    convolution = Convolution((1,), ((2, 2),), dimension_numbers=("NHC", "HIO", "NHC"))
    for zero_point in (0.0, 7.0, 255.0):
        one = jnp.ones((1, 1, 1))
        x = draw_codes(np.random.default_rng(0), (1, 4, 1), 8, False, False)._replace(scale=one)
        x = x._replace(
            zero_point=zero_point * one,
            values=jnp.full((1, 4, 1), zero_point + (1 if zero_point < 255 else -1), jnp.uint8),
        )
        w = draw_codes(np.random.default_rng(0), (3, 1, 1), 8, True, False)
        w = w._replace(scale=one, zero_point=-5 * one, values=jnp.full((3, 1, 1), -4, jnp.int8))
        sign = 1 if zero_point < 255 else -1
        np.testing.assert_array_equal(integer_conv(x, w, convolution).reshape(-1), sign * np.array([1, 2, 3, 3, 2, 1]))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("groups", [1, 16])
def test_a_layer_of_usual_size(padding, groups):
    """A 3 by 3 layer of 16 channels, dense and depthwise, with W4A8 codes: equal to the simulation, near the float."""
    generator = np.random.default_rng(groups)
    x = draw_codes(generator, (2, 12, 12, 16), 8, False, True)
    w = draw_codes(generator, (3, 3, 16 // groups, 16), 4, True, False, (3,))
    convolution = Convolution((2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
    found = jax.jit(partial(integer_conv, convolution=convolution))(x, w)
    np.testing.assert_array_equal(found, jax.jit(partial(simulated_conv, convolution=convolution))(x, w))
    values = jax.lax.conv_general_dilated(decode(x), decode(w), **convolution._asdict())
    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-4 * float(jnp.abs(values).max()))


@pytest.mark.parametrize(
    ("which", "axis", "role"), [(0, 3, "input"), (0, 1, "input"), (1, 2, "kernel"), (1, 0, "kernel")]
)
def test_a_scale_that_varies_along_what_is_summed_is_refused(which, axis, role):
    generator = np.random.default_rng(0)
    shapes = ((2, 5, 5, 4), (3, 3, 4, 6))
    sides = [
        draw_codes(generator, shape, 4, True, False, (axis,) if i == which else ()) for i, shape in enumerate(shapes)
    ]
    for convolve in (integer_conv, simulated_conv):
        with pytest.raises(GraphError, match=f"the {role} of an integer convolution has one scale"):
            convolve(*sides, Convolution((1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))


def test_codes_in_groups_are_refused():
    generator = np.random.default_rng(0)
    sides = [draw_codes(generator, shape, 4, True, False) for shape in ((2, 5, 5, 4), (3, 3, 2, 2, 6))]
    with pytest.raises(GraphError, match="groups can not be convolved"):
        integer_conv(*sides, Convolution((1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
