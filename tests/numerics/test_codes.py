from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import Codes, decode, encode_uniform
from qresearch.numerics.fake_quant import fake_quant
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.numerics.grid import integer_range, scale_from_range
from qresearch.numerics.rounding import ROUNDINGS

X = jax.random.normal(jax.random.key(0), (4, 6, 32)) * 3


@pytest.mark.parametrize(("signed", "symmetric"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(0), per_channel(0, 2), per_group(-1, 8)])
def test_decoded_codes_are_the_fake_quantized_values(granularity, signed, symmetric):
    view = granularity.view(X)
    axes = granularity.shared_axes(view.ndim)
    low, high = view.min(axes, keepdims=True) * 0.7, view.max(axes, keepdims=True) * 0.7  # some elements are clipped

    @jax.jit
    def both(bits):
        qmin, qmax = integer_range(bits, signed)
        grid = (*scale_from_range(low, high, qmin, qmax, symmetric), qmin, qmax)
        codes = encode_uniform(view, *grid)
        return qmin, qmax, codes.values, decode(codes), fake_quant(view, *grid)

    for bits in (1, 2, 3, 4, 8, 12, 16):
        qmin, qmax, values, decoded, simulated = both(jnp.float32(bits))
        assert values.dtype == jnp.int32
        assert values.shape == view.shape
        assert qmin.item() <= values.min().item()
        assert values.max().item() <= qmax.item()
        np.testing.assert_array_equal(decoded, simulated)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_codes_are_rounded_as_the_fake_quantized_values_are(rounding):
    arguments = (jnp.float32(0.1), jnp.float32(3), jnp.float32(-64), jnp.float32(63))
    codes = encode_uniform(X, *arguments, rounding)
    np.testing.assert_array_equal(decode(codes), fake_quant(X, *arguments, rounding=rounding))
    if rounding != "half_even":
        assert (codes.values != encode_uniform(X, *arguments).values).mean() > 0.1


def test_a_fractional_zero_point_is_stored_rounded():
    arguments = (jnp.float32(0.1), jnp.float32(1.3), jnp.float32(-8), jnp.float32(7))
    codes = encode_uniform(X, *arguments)
    assert codes.zero_point == 1.0
    np.testing.assert_array_equal(decode(codes), fake_quant(X, *arguments))


def test_what_is_stored_under_stochastic_rounding_is_the_nearest_code():
    arguments = (jnp.float32(0.1), jnp.float32(0), jnp.float32(-8), jnp.float32(7))
    stored = encode_uniform(X, *arguments, "stochastic").values
    np.testing.assert_array_equal(stored, encode_uniform(X, *arguments).values)


def test_a_codebook_is_indexed_and_scaled():
    levels = jnp.asarray([-1.0, -0.25, 0.0, 0.25, 1.0])
    values = jnp.asarray([[0, 1, 2], [4, 3, 0]], jnp.int32)
    scale = jnp.asarray([[2.0], [0.5]])
    decoded = decode(Codes(values, scale, jnp.zeros_like(scale), levels))
    np.testing.assert_array_equal(decoded, [[-2.0, -0.5, 0.0], [0.5, 0.125, -0.5]])


def test_reduced_precision_input_is_encoded_in_float32():
    x = X.astype(jnp.bfloat16)
    arguments = (jnp.float32(0.013), jnp.float32(3), jnp.float32(0), jnp.float32(255))
    codes = encode_uniform(x, *arguments)
    np.testing.assert_array_equal(codes.values, encode_uniform(x.astype(jnp.float32), *arguments).values)
    assert decode(codes).dtype == jnp.float32
