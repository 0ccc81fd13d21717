"""Requantization in whole numbers, against Python's integers, which have no width."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.numerics.fixed_point import RESCALES, fixed_rescale, float_rescale

SUMS = st.one_of(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(-300, 300), st.sampled_from([0, 1, -1, 2**31 - 1]))
SCALES = st.one_of(
    st.floats(2.0**-30, 2.0**10, width=32), st.sampled_from([0.0, 2.0**-126, 2.0**-60, 0.5, 1.0, 2.0**-13])
)


def whole(quarters: int, scale: float, largest: int) -> int:
    """round(quarters M / 2^shift), halves away from zero, in Python's integers."""
    if scale == 0.0:
        return 0
    fraction, exponent = math.frexp(scale)
    multiplier, shift = int(fraction * 2**24), 24 + min(largest - exponent, 39)
    steps = (abs(quarters) * multiplier + 2 ** (shift - 1)) >> shift
    return steps if quarters >= 0 else -steps


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(st.lists(st.tuples(SUMS, SCALES), min_size=5, max_size=5))
def test_fixed_point_is_exact_in_whole_numbers(cases):
    quarters, scales = (np.array(column) for column in zip(*cases))
    scales = scales.astype(np.float32)
    largest = max(-120, *(math.frexp(float(scale))[1] if scale else -126 for scale in scales))
    found = np.asarray(COMPILED(jnp.asarray(quarters, jnp.int32), jnp.asarray(scales)))
    expected = [whole(int(q), float(s), largest) for q, s in zip(quarters, scales)]
    np.testing.assert_array_equal(found, np.float32(expected) * np.float32(2.0 ** (largest - 2)))


COMPILED = jax.jit(fixed_rescale)


def test_both_ways_agree_to_a_quarter_of_a_unit_of_the_sum():
    generator = np.random.default_rng(0)
    quarters = jnp.asarray(generator.integers(-(2**22), 2**22, (64, 10)), jnp.int32)
    scale = jnp.asarray(generator.uniform(1e-5, 1e-3, (1, 10)), jnp.float32)
    difference = np.abs(np.asarray(fixed_rescale(quarters, scale)) - np.asarray(float_rescale(quarters, scale)))
    assert difference.max() <= float(scale.max()) / 4
    assert difference.max() > 0  # they are two ways, not one under two names


@pytest.mark.parametrize("name", RESCALES)
def test_a_power_of_two_is_no_rounding(name):
    quarters = jnp.asarray([-28, -16, 0, 12, 4096], jnp.int32)
    np.testing.assert_array_equal(RESCALES[name](quarters, jnp.full(1, 0.125)), quarters / 4 * 0.125)
