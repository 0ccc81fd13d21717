"""Integer contractions against NumPy's exact ones and against the simulation that holds the codes in float32.

Every product is computed by NumPy in float64, exactly, from codes and zero-points; the scaling in float32 is one
multiplication by one product of scales, so that the results can be, and are, compared bit for bit.
"""

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
from qresearch.numerics.codes import Codes, decode, encode_uniform
from qresearch.numerics.granularity import per_channel, per_group
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.integer import integer_dot, simulated_dot, split_axis, split_dimension_numbers
from qresearch.numerics.packing import from_qtensor, narrow, to_qtensor


def numpy_dot(lhs: Codes, rhs: Codes, numbers) -> np.ndarray:
    """The exact sums of products by einsum, and their scaling in float32."""
    (left, right), (left_batch, right_batch) = numbers
    letters = iter("abcdefghijklmnop")
    names = [[""] * lhs.values.ndim, [""] * rhs.values.ndim]
    for i, j in zip(left + left_batch, right + right_batch):
        names[0][i] = names[1][j] = next(letters)
    names = [[name or next(letters) for name in side] for side in names]
    batch = [names[0][i] for i in left_batch]
    free = [n for i, n in enumerate(names[0]) if i not in left + left_batch]
    free += [n for j, n in enumerate(names[1]) if j not in right + right_batch]
    formula = f"{''.join(names[0])},{''.join(names[1])}->{''.join(batch + free)}"
    full = [np.broadcast_to(np.asarray(c.scale), c.values.shape) for c in (lhs, rhs)]
    total = np.einsum(formula, exact(lhs), exact(rhs))
    # Scales are constant along what is summed: one element there stands for all.
    one = [
        side[tuple(slice(0, 1) if i in axes else slice(None) for i in range(side.ndim))]
        for side, axes in zip(full, (left, right))
    ]
    return total.astype(np.float32) * np.einsum(formula, *one)


@st.composite
def dots(draw):
    """Shapes and dimension numbers of any dot_general, with the axes of each operand in any order."""
    count = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    sizes = lambda number: [count(1, 7) for _ in range(number)]  # noqa: E731
    batch, summed, free = sizes(count(0, 2)), sizes(count(1, 2)), [sizes(count(0, 2)), sizes(count(0, 2))]
    shapes, orders = [], []
    for own in free:
        roles = [*batch, *summed, *own]
        order = draw(st.permutations(range(len(roles))))
        shapes.append(tuple(roles[i] for i in order))
        orders.append([order.index(i) for i in range(len(roles))])
    pick = lambda first, last: tuple(tuple(order[first:last]) for order in orders)  # noqa: E731
    return shapes, (pick(len(batch), len(batch) + len(summed)), pick(0, len(batch)))


@PROPERTY
@given(dots(), st.tuples(*[st.booleans()] * 6), st.integers(0, 2**32 - 1))
def test_an_integer_dot_is_exact_and_is_the_simulation(dot, choices, seed):
    shapes, numbers = dot
    signed, affine, channels = choices[:2], choices[2:4], choices[4:]
    generator = np.random.default_rng(seed)
    varying = [
        tuple(i for i in range(len(shape)) if i not in summed) if channel else ()
        for shape, summed, channel in zip(shapes, numbers[0], channels)
    ]
    integer, simulated = (jax.jit(partial(f, dimension_numbers=numbers)) for f in (integer_dot, simulated_dot))
    for bits in zip(BITS, generator.permutation(BITS)):
        lhs, rhs = (draw_codes(generator, *each) for each in zip(shapes, bits, signed, affine, varying))
        found = np.asarray(integer(lhs, rhs))
        np.testing.assert_array_equal(found, numpy_dot(lhs, rhs, numbers), err_msg=f"{bits} bits")
        np.testing.assert_array_equal(found, simulated(lhs, rhs), err_msg=f"{bits} bits")
        assert found.dtype == np.float32


@pytest.mark.parametrize("signed", [*itertools.product([True, False], repeat=2)])
def test_the_widest_codes_of_a_long_sum_are_exact_where_float32_is_not(signed):
    """8,000 products of 8-bit codes at the ends of their range: 2^31 quarters are nearly reached, 2^24 long passed."""
    size, numbers = 8_000, (((0,), (0,)), ((), ()))
    ends = [(-128, 127) if s else (0, 255) for s in signed]
    for a, b in itertools.product((0, 1), repeat=2):
        sides = []
        for (low, high), end, s in zip(ends, (a, b), signed):
            code, zero_point = (high, low) if end else (low, high)
            values = jnp.full((size,), code, jnp.int8 if s else jnp.uint8).at[0].set(code - (1 if end else -1))
            sides.append(Codes(values, jnp.ones(1), jnp.full((1,), float(zero_point))))
        total = (exact(sides[0]) * exact(sides[1])).sum()
        assert 2**28 < abs(total) < 2**29
        assert integer_dot(*sides, numbers) == np.float32(total)
        plain = [side._replace(zero_point=jnp.zeros(1)) for side in sides]
        assert integer_dot(*plain, numbers) == np.float32((exact(plain[0]) * exact(plain[1])).sum())


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("signed", [True, False])
def test_groups_are_scaled_before_they_are_summed(signed, both):
    generator = np.random.default_rng(5)
    numbers = (((2,), (0,)), ((), ()))
    split = split_dimension_numbers(numbers, 0)
    assert split == (((2, 3), (0, 1)), ((), ()))
    integer, simulated = (jax.jit(partial(f, dimension_numbers=split)) for f in (integer_dot, simulated_dot))
    for bits in BITS:
        weight = draw_codes(generator, (6, 8, 5), bits, True, False, (0, 2))  # per_group(0, 8) of (48, 5)
        if both:
            inputs = draw_codes(generator, (3, 4, 6, 8), bits, signed, True, (0, 1, 2))
        else:
            inputs = split_axis(draw_codes(generator, (3, 4, 48), bits, signed, True, (0,)), 2, 8)
        assert inputs.scale.shape == ((3, 4, 6, 1) if both else (3, 1, 1, 1))
        found = np.asarray(integer(inputs, weight))
        np.testing.assert_array_equal(found, simulated(inputs, weight))
        values = [exact(codes) * np.asarray(codes.scale, np.float64) for codes in (inputs, weight)]
        wanted = np.einsum("abgk,gkn->abn", *values)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


def test_a_scale_of_every_summed_element_is_right_too():
    generator = np.random.default_rng(6)
    lhs = draw_codes(generator, (3, 10), 8, False, True, (1,))  # an input with a range for every feature
    rhs = draw_codes(generator, (10, 4), 4, True, False, (1,))
    numbers = (((1,), (0,)), ((), ()))
    found = integer_dot(lhs, rhs, numbers)
    np.testing.assert_array_equal(found, simulated_dot(lhs, rhs, numbers))
    np.testing.assert_allclose(found, np.asarray(decode(lhs)) @ np.asarray(decode(rhs)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("position", [0, 1])
def test_splitting_a_summed_axis_changes_no_exact_result(position):
    generator = np.random.default_rng(7)
    lhs = draw_codes(generator, (2, 6, 3, 4), 4, True, True, (0,))
    rhs = draw_codes(generator, (4, 5, 6, 2), 4, False, True, (1,))
    numbers = (((3, 1), (0, 2)), ((0,), (3,)))
    sides = [split_axis(lhs, numbers[0][0][position], 2), split_axis(rhs, numbers[0][1][position], 2)]
    found = integer_dot(*sides, split_dimension_numbers(numbers, position))
    np.testing.assert_array_equal(found, integer_dot(lhs, rhs, numbers))


@pytest.mark.parametrize("dtype", [jnp.int4, jnp.uint4])
def test_four_bit_arrays_are_computed_in_int8(dtype):
    lhs = jnp.asarray([[1, 7, 3, 0]]).astype(dtype)
    one = jnp.ones((1, 1))
    found = integer_dot(Codes(lhs, one, one), Codes(lhs, one, 0 * one), (((1,), (1,)), ((), ())))
    assert found.item() == 0 * 1 + 6 * 7 + 2 * 3


@pytest.mark.parametrize("granularity", [per_channel(1), per_group(0, 16)])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_packed_weight_multiplies_as_the_simulated_one(bits, granularity):
    """From real tensors: codes packed and unpacked, an affine unsigned input, against the dequantized product."""
    generator = np.random.default_rng(bits)
    x, w = (jnp.asarray(generator.normal(0, 1, shape), jnp.float32) for shape in ((9, 64), (64, 7)))
    view = granularity.view(w)
    bound = jnp.abs(view).max(granularity.shared_axes(view.ndim), keepdims=True)
    qmin, qmax = integer_range(float(bits), signed=True)
    weight = encode_uniform(view, *scale_from_range(-bound, bound, qmin, qmax, True), qmin, qmax)
    qmin, qmax = integer_range(8.0, signed=False)
    grid = scale_from_range(x.min(keepdims=True), x.max(keepdims=True), qmin, qmax, False)
    inputs = narrow(encode_uniform(x, *grid, qmin, qmax), signed=False)
    numbers = (((1,), (0,)), ((), ()))
    if granularity.group is not None:
        inputs, numbers = split_axis(inputs, 1, 16), split_dimension_numbers(numbers, 0)
    packed = to_qtensor(weight, bits, signed=True)
    found = jax.jit(lambda x, w: integer_dot(x, from_qtensor(w), numbers))(inputs, packed)
    simulated = jax.jit(lambda x, w: simulated_dot(x, w, numbers))(inputs, weight)
    np.testing.assert_array_equal(found, simulated)
    values = np.asarray(decode(inputs), np.float64).reshape(9, 64) @ np.asarray(decode(weight), np.float64).reshape(
        64, 7
    )
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-5)


def test_what_has_no_integer_product_is_refused():
    one = jnp.ones((1, 1))
    numbers = (((1,), (0,)), ((), ()))
    good = Codes(jnp.ones((2, 2), jnp.int8), one, 0 * one)
    with pytest.raises(GraphError, match=r"int8 or uint8 codes, got int32: use narrow"):
        integer_dot(good._replace(values=jnp.ones((2, 2), jnp.int32)), good, numbers)
    for product in (integer_dot, simulated_dot):
        with pytest.raises(GraphError, match="codebook"):
            product(good, good._replace(codebook=jnp.arange(4.0)), numbers)
        with pytest.raises(GraphError, match="whole or half numbers"):
            product(good, good._replace(zero_point=0.3 * one), numbers)
