from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.formats import FORMATS
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError, on_view
from qresearch.quantizers.minifloat import MiniFloat, fp4_e2m1, fp6_e2m3, fp6_e3m2, fp8_e4m3, fp8_e5m2

FACTORIES = {
    fp8_e4m3: ml_dtypes.float8_e4m3fn,
    fp8_e5m2: ml_dtypes.float8_e5m2,
    fp6_e3m2: ml_dtypes.float6_e3m2fn,
    fp6_e2m3: ml_dtypes.float6_e2m3fn,
    fp4_e2m1: ml_dtypes.float4_e2m1fn,
}
NAMED = pytest.mark.parametrize(("factory", "dtype"), FACTORIES.items(), ids=[f.__name__ for f in FACTORIES])
X = np.random.default_rng(0).normal(0, 0.7, (4, 6, 64)).astype(np.float32)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="compares ties, which need a correctly rounded division")
@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(-1, 16)])
@NAMED
def test_it_is_the_scaled_cast_and_stores_the_formats_bits(factory, dtype, granularity):
    quantizer = on_view(granularity, factory(QuantSpec(granularity=granularity)))
    qparams = quantizer.init(jnp.asarray(X), 4.0)
    view, bound = granularity.view(X), np.float32(FORMATS[factory.__name__].max_value)
    largest = np.abs(view).max(granularity.shared_axes(view.ndim), keepdims=True)
    np.testing.assert_allclose(qparams.scale * bound, largest, rtol=2e-7)
    cast = np.clip(view / np.asarray(qparams.scale), -bound, bound).astype(dtype)
    wanted = cast.astype(np.float32) * np.asarray(qparams.scale)
    for bits in (2.0, 8.0):
        found = quantizer.apply(qparams, jnp.asarray(X), bits)
        np.testing.assert_array_equal(found, wanted.reshape(X.shape))
    codes = quantizer.encode(qparams, jnp.asarray(X), 8.0)
    positive_zero = np.where(wanted == 0, 0, cast.view(np.uint8))
    np.testing.assert_array_equal(codes.values, positive_zero)
    np.testing.assert_array_equal(decode(codes), wanted)


@NAMED
def test_the_relative_error_is_half_a_unit_in_the_last_place(factory, dtype):
    """Where the format is not subnormal, whatever the size of the value: what a float has over an integer."""
    quantizer, number = factory(QuantSpec()), FORMATS[factory.__name__]
    spread = 2.0 ** -(number.max_exponent - number.min_exponent)
    x = np.geomspace(spread, 1, 5000).astype(np.float32)
    x_hat = np.asarray(quantizer.apply(quantizer.init(jnp.asarray(x), 8.0), jnp.asarray(x), 8.0), np.float64)
    assert (np.abs(x_hat / x - 1) <= 2.0 ** -(number.mantissa_bits + 1) * (1 + 1e-6)).all()


@NAMED
def test_the_gradient_stops_where_the_format_saturates(factory, dtype):
    quantizer, scale = factory(QuantSpec(mask="unrounded")), np.float32(0.8 / FORMATS[factory.__name__].max_value)
    qparams = MiniFloat(jnp.full((1, 1, 1), scale))
    slope = jax.grad(lambda x: quantizer.apply(qparams, x, 8.0).sum())(jnp.asarray(X))
    inside = np.abs(X / scale) <= FORMATS[factory.__name__].max_value
    np.testing.assert_array_equal(slope, inside)
    found = np.asarray(quantizer.apply(qparams, jnp.asarray(X), 8.0))
    np.testing.assert_array_equal(np.abs(found[~inside]), scale * np.float32(FORMATS[factory.__name__].max_value))


def test_a_calibrated_range_replaces_the_absmax():
    x = jnp.asarray(X).at[0, 0, 0].set(8.0)
    widest, searched = (fp4_e2m1(QuantSpec(range=name)).init(x, 8.0).scale.item() for name in (None, "mse"))
    assert searched < widest


def test_unsigned_tensors_lose_their_negative_values_and_gradients():
    quantizer = fp6_e2m3(QuantSpec(signed=False))
    qparams = quantizer.init(jnp.asarray(X), 6.0)
    run = lambda x: quantizer.apply(qparams, x, 6.0)  # noqa: E731
    assert (np.asarray(run(jnp.asarray(X)))[X < 0] == 0).all()
    np.testing.assert_array_equal(jax.grad(lambda x: run(x).sum())(jnp.asarray(X)), X >= 0)


@NAMED
def test_a_zero_point_is_refused_by_name(factory, dtype):
    with pytest.raises(UnsupportedSpecError, match=f"{factory.__name__} .*symmetric"):
        factory(QuantSpec(symmetric=False))
