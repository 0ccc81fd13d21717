from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.numerics.formats import (
    FLOAT_ROUNDINGS,
    FORMATS,
    FloatFormat,
    float_levels,
    float_to_pattern,
    floor_log2,
    half_away,
    power_of_two,
    round_to_float,
)
from qresearch.numerics.rounding import ROUNDINGS

CASTS = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
FIXED = sorted(set(FORMATS) - set(CASTS))


@cache
def compiled(name: str, rounding: str = "half_even"):
    return jax.jit(partial(round_to_float, **FORMATS[name]._asdict(), rounding=rounding))


@cache
def levels(name: str) -> np.ndarray:
    """Every finite value of the format, ascending, from ml_dtypes' own reading of the bit patterns or by counting."""
    if name in FIXED:
        step = 2.0 ** -FORMATS[name].mantissa_bits
        top = round(FORMATS[name].max_value / step)
        return np.arange(-top, top + 1) * step
    values = np.arange(2 ** FORMATS[name].bits, dtype=np.uint8).view(CASTS[name]).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


@cache
def probes(name: str) -> np.ndarray:
    """Every bfloat16, random float32 of every exponent, and both neighbours of every level and every tie."""
    halves = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    drawn = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    near = np.random.default_rng(1).normal(0, FORMATS[name].max_value / 2, 50_000).astype(np.float32)
    marks = np.concatenate([levels(name), (levels(name)[1:] + levels(name)[:-1]) / 2]).astype(np.float32)
    x = np.concatenate([halves, drawn, near, marks, np.nextafter(marks, np.inf), np.nextafter(marks, -np.inf)])
    x = x[np.isfinite(x)]
    return x[(x == 0) | (np.abs(x) >= np.finfo(np.float32).tiny)]  # XLA may read subnormal float32 numbers as zero


def neighbours(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The levels just below and just above x (both x itself on a level), in float64, after saturation."""
    grid = levels(name)
    x = np.clip(x.astype(np.float64), grid[0], grid[-1])
    return grid[np.searchsorted(grid, x, side="right") - 1], grid[np.searchsorted(grid, x, side="left")]


@pytest.mark.parametrize("name", CASTS)
def test_rounding_is_the_cast_of_ml_dtypes(name):
    x = probes(name)
    bound = np.float32(FORMATS[name].max_value)  # casts overflow to infinity or NaN, ours saturates
    wanted = np.clip(x, -bound, bound).astype(CASTS[name]).astype(np.float32)
    np.testing.assert_array_equal(compiled(name)(x), wanted)
    print(f"{name}: {x.size} values compared with ml_dtypes")
    assert x.size > 190_000


@pytest.mark.parametrize("rounding", FLOAT_ROUNDINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_rounding_is_its_definition(name, rounding):
    x = probes(name)
    low, high = neighbours(name, x)
    inside = np.clip(x.astype(np.float64), low, high)
    to_low, to_high = inside - low, high - inside
    # The even one of two neighbours is an even multiple of their distance, which is the spacing just above |low|.
    even = np.where(np.rint(low / np.where(high > low, high - low, 1)) % 2 == 0, low, high)
    tie = {"half_even": even, "half_away": np.where(low < 0, low, high)}.get(rounding)
    nearest = np.where(to_low < to_high, low, np.where(to_low > to_high, high, tie))
    directed = {"floor": low, "ceil": high, "toward_zero": np.where(low < 0, high, low)}
    np.testing.assert_array_equal(compiled(name, rounding)(x), directed.get(rounding, nearest).astype(np.float32))


def test_ties_tell_the_roundings_apart():
    x = jnp.asarray([2.5, -2.5, 3.5, -3.5, 0.25, 5.0])  # fp4: 2, 3, 4 and 0, 0.5 and 4, 6
    np.testing.assert_array_equal(round_to_float(x, *FORMATS["fp4_e2m1"]), [2, -2, 4, -4, 0, 4])
    np.testing.assert_array_equal(round_to_float(x, *FORMATS["fp4_e2m1"], "half_away"), [3, -3, 4, -4, 0.5, 6])


def test_float16_with_its_subnormals_is_a_format_too():
    x = np.random.default_rng(0).normal(0, 1, 100_000) * 2.0 ** np.random.default_rng(1).integers(-27, 17, 100_000)
    x = np.clip(x, -65504, 65504).astype(np.float32)
    rounded = jax.jit(lambda x: round_to_float(x, 5, 10, 65504.0))(x)
    np.testing.assert_array_equal(rounded, x.astype(np.float16).astype(np.float32))
    assert (np.abs(rounded) < 2.0**-14).mean() > 0.2  # subnormal ones among them


@pytest.mark.parametrize("name", FIXED)
def test_exponent_bits_zero_is_fixed_point(name):
    number = FORMATS[name]
    x = np.random.default_rng(2).normal(0, 1, 1000).astype(np.float32)
    wanted = np.clip(
        np.rint(x * 2**number.mantissa_bits) / 2**number.mantissa_bits, -number.max_value, number.max_value
    )
    np.testing.assert_array_equal(compiled(name)(x), wanted.astype(np.float32))
    assert number.bits == int(name[3:])


@pytest.mark.parametrize("name", FORMATS)
def test_infinity_saturates_and_nan_stays(name):
    bound = FORMATS[name].max_value
    found = compiled(name)(jnp.asarray([jnp.inf, -jnp.inf, jnp.nan, 3e38, 0.0], jnp.float32))
    np.testing.assert_array_equal(found, [bound, -bound, np.nan, bound, 0.0])


@pytest.mark.parametrize("name", CASTS)
def test_patterns_are_the_bits_of_ml_dtypes(name):
    values = levels(name).astype(np.float32)
    patterns = jax.jit(partial(float_to_pattern, number=FORMATS[name]))(values)
    bits = (values + np.float32(0)).astype(CASTS[name]).view(np.uint8)
    np.testing.assert_array_equal(patterns, bits.astype(np.int32))


@pytest.mark.parametrize("name", CASTS)
def test_levels_are_the_values_of_all_patterns(name):
    theirs = np.arange(2 ** FORMATS[name].bits, dtype=np.uint8).view(CASTS[name]).astype(np.float32)
    ours = np.asarray(float_levels(FORMATS[name]))
    bound = np.float32(FORMATS[name].max_value)
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours, np.where(np.isfinite(theirs), theirs, np.copysign(bound, ours)))
    assert FORMATS[name].max_exponent == np.floor(np.log2(bound))
    assert FORMATS[name].bits == ml_dtypes.finfo(CASTS[name]).bits


@settings(deadline=None, derandomize=True, database=None)  # the first examples compile
@given(st.floats(-1e4, 1e4, width=32), st.sampled_from(sorted(FORMATS)), st.sampled_from(sorted(FLOAT_ROUNDINGS)))
def test_what_is_rounded_is_kept_and_lies_next_to_the_value(value, name, rounding):
    x = np.float32(value if abs(value) >= np.finfo(np.float32).tiny else 0)
    once = compiled(name, rounding)(jnp.asarray([x]))
    low, high = neighbours(name, np.asarray([x]))
    assert float(once[0]) in (low[0], high[0])
    np.testing.assert_array_equal(compiled(name, rounding)(once), once)


def test_stochastic_rounding_is_unbiased_between_neighbours():
    draws, x = 40_000, np.asarray([0.01, 0.3, 2.2, 4.5, -1.2], np.float32)
    noise = jax.random.uniform(jax.random.key(0), (draws, 5))
    rounded = round_to_float(jnp.broadcast_to(jnp.asarray(x), (draws, 5)), *FORMATS["fp4_e2m1"], noise=noise)
    low, high = neighbours("fp4_e2m1", x)
    assert ((np.asarray(rounded) == low) | (np.asarray(rounded) == high)).all()
    deviation = (high - low) / 2 / np.sqrt(draws)
    assert (np.abs(np.asarray(rounded, np.float64).mean(0) - x) <= 4 * deviation).all()


def test_half_away_where_adding_a_half_fails():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    assert np.floor(below + np.float32(0.5)) == 1  # what it avoids
    x = jnp.asarray([below, -below, 0.5, -0.5, 1.5, 2.5, -2.5, 8388607.5, 0.0])
    np.testing.assert_array_equal(half_away(x), [0, 0, 1, -1, 2, 3, -3, 8388608, 0])
    assert set(FLOAT_ROUNDINGS) == {*ROUNDINGS, "half_away"}


def test_logarithm_and_power_are_exact_at_every_normal_exponent():
    exponents = np.arange(-126, 128, dtype=np.int32)
    powers = np.ldexp(np.float32(1), exponents)
    np.testing.assert_array_equal(power_of_two(jnp.asarray(exponents)), powers)
    for x in (powers, -powers, np.nextafter(powers[1:], np.float32(0))):
        np.testing.assert_array_equal(floor_log2(jnp.asarray(x)), exponents[: x.size])


@pytest.mark.parametrize("exponent_bits", [-1, 8])
def test_a_format_beyond_float32_is_refused(exponent_bits):
    with pytest.raises(ValueError, match=f"from 0 to 7, got {exponent_bits}"):
        round_to_float(jnp.ones(1), exponent_bits, 3, 1.0)


def test_reduced_precision_is_rounded_in_float32():
    x = jnp.asarray([1.1, 300.0, 1e-3], jnp.bfloat16)
    found = round_to_float(x, *FORMATS["fp8_e4m3"])
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, round_to_float(x.astype(jnp.float32), *FORMATS["fp8_e4m3"]))


def test_the_largest_format_reaches_its_smallest_value():
    number = FloatFormat(7, 4, 2.0**63 * 1.9375)
    smallest = np.float32(2.0 ** (number.min_exponent - 4))
    x = jnp.asarray([smallest, 0.6 * smallest, 0.5 * smallest, 1e19, 1e30])
    np.testing.assert_array_equal(
        round_to_float(x, *number), [smallest, smallest, 0, 2.0**63 * 1.0625, number.max_value]
    )
