from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.float_quant import encode_float, float_quant
from qresearch.numerics.formats import FLOAT_ROUNDINGS, FORMATS, round_to_float

X = np.random.default_rng(0).normal(0, 1, (6, 200)).astype(np.float32)
SCALE = np.asarray([0.1, 0.02, 0.3, 1.0, 0.037, 1e-3], np.float32).reshape(6, 1)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rounding", FLOAT_ROUNDINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_decoded_codes_are_the_values(name, rounding, signed):
    number = FORMATS[name]
    values = jax.jit(partial(float_quant, number=number, signed=signed, rounding=rounding))(X, SCALE)
    codes = jax.jit(partial(encode_float, number=number, signed=signed, rounding=rounding))(X, SCALE)
    np.testing.assert_array_equal(decode(codes), values)
    assert codes.values.dtype == jnp.int32
    assert (codes.codebook is None) == (number.exponent_bits == 0)
    if codes.codebook is None:
        assert np.abs(codes.values).max() == 2 ** (number.bits - 1) - 1
    else:
        assert codes.codebook.shape == (2**number.bits,)
        assert codes.values.min() >= 0
    assert signed or values.min() == 0


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp4_e2m1", "int4"])
def test_it_is_the_scaled_rounding(name):
    wanted = np.asarray(round_to_float(jnp.asarray(X / SCALE), *FORMATS[name])) * SCALE
    np.testing.assert_array_equal(float_quant(jnp.asarray(X), jnp.asarray(SCALE), FORMATS[name]), wanted)


@pytest.mark.parametrize("signed", [True, False])
def test_masks_say_where_the_gradient_stops(signed):
    """fp4 reaches 6 and would go on with 8: a value up to 7 rounds into the grid, half to even."""
    x = jnp.asarray([-9.0, -6.5, -6.0, -0.1, 0.0, 0.1, 5.9, 6.0, 6.5, 7.0, 7.1, 9.0])
    gradient = lambda mask: jax.grad(  # noqa: E731
        lambda x: float_quant(x, jnp.ones(1), FORMATS["fp4_e2m1"], signed=signed, mask=mask).sum()
    )(x)
    below = [1, 1] if signed else [0, 0]
    np.testing.assert_array_equal(gradient("rounded"), [0, below[0], below[0], below[0], 1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(gradient("unrounded"), [0, 0, below[0], below[0], 1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(gradient("none"), np.ones(12))


def test_the_gradient_in_x_is_the_upstream_one_exactly_and_the_scale_gets_none():
    upstream = jnp.cos(jnp.arange(1200.0)).reshape(6, 200)
    _, pullback = jax.vjp(partial(float_quant, number=FORMATS["fp8_e4m3"]), jnp.asarray(X), jnp.asarray(SCALE))
    of_x, of_scale = pullback(upstream)
    inside = np.abs(X / SCALE) <= 464  # the middle of 448 and what would be 480, half to even
    assert inside.mean() > 0.8
    np.testing.assert_array_equal(of_x, np.where(inside, upstream, 0))
    np.testing.assert_array_equal(of_scale, np.zeros_like(SCALE))


def test_stochastic_rounding_needs_a_key_and_stores_the_nearest():
    with pytest.raises(ValueError, match="key"):
        float_quant(jnp.asarray(X), jnp.asarray(SCALE), FORMATS["fp8_e4m3"], rounding="stochastic")
    stored = encode_float(jnp.asarray(X), jnp.asarray(SCALE), FORMATS["fp8_e4m3"], True, "stochastic")
    nearest = encode_float(jnp.asarray(X), jnp.asarray(SCALE), FORMATS["fp8_e4m3"], True)
    np.testing.assert_array_equal(stored.values, nearest.values)


@pytest.mark.parametrize("wrong", [{"mask": "clip"}, {"rounding": "up"}])
def test_an_unknown_name_is_refused_with_the_known_ones(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*half_even|mask must be .*unrounded"):
        float_quant(jnp.asarray(X), jnp.asarray(SCALE), FORMATS["fp8_e4m3"], **wrong)


def test_the_dtype_of_x_comes_back():
    x = jnp.asarray(X, jnp.bfloat16)
    low = float_quant(x, jnp.asarray(SCALE), FORMATS["fp6_e3m2"])
    assert low.dtype == jnp.bfloat16
    wide = float_quant(x.astype(jnp.float32), jnp.asarray(SCALE), FORMATS["fp6_e3m2"])
    np.testing.assert_array_equal(low, wide.astype(jnp.bfloat16))
