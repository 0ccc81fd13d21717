from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError, on_view
from qresearch.quantizers.binary import Binary, binary

X = np.random.default_rng(0).normal(0.1, 0.7, (4, 6, 32)).astype(np.float32)
UPSTREAM = np.cos(np.arange(X.size)).reshape(X.shape).astype(np.float32)
GRANULARITIES = [PER_TENSOR, per_channel(1), per_group(-1, 8)]


def make(spec: QuantSpec, **options):
    return on_view(spec.granularity, binary(spec, **options))


def scale_of(x, granularity):
    view = np.abs(granularity.view(x).astype(np.float64))
    return view.mean(granularity.shared_axes(view.ndim), keepdims=True)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_is_the_sign_times_the_mean_magnitude(granularity):
    quantizer = make(QuantSpec(granularity=granularity))
    x = X.copy()
    x[0, 0, :2] = 0.0, -0.0  # both have the sign 1
    view = granularity.view(x)
    wanted = (np.where(view >= 0, 1, -1) * scale_of(x, granularity)).reshape(X.shape)
    for bits in (1.0, 4.0):
        np.testing.assert_allclose(quantizer.apply(Binary(None, None), jnp.asarray(x), bits), wanted, rtol=1e-6)


def test_no_other_scale_is_nearer():
    quantizer = make(QuantSpec())
    x_hat = np.asarray(quantizer.apply(quantizer.init(jnp.asarray(X), 1.0), jnp.asarray(X), 1.0), np.float64)
    errors = [((factor * x_hat - X) ** 2).sum() for factor in (0.99, 1.0, 1.01)]
    assert errors[1] < min(errors[0], errors[2])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_gradient_is_the_papers(granularity):
    """s 1{|x| <= 1} dy_i + sign(x_i) / n * sum_j dy_j sign(x_j), in float64."""
    quantizer = make(QuantSpec(granularity=granularity))
    found = jax.grad(lambda x: (quantizer.apply(Binary(None, None), x, 1.0) * UPSTREAM).sum())(jnp.asarray(X))
    x, dy = (granularity.view(value).astype(np.float64) for value in (X, UPSTREAM))
    axes = granularity.shared_axes(x.ndim)
    through_mean = np.sign(x) * (dy * np.sign(x)).mean(axes, keepdims=True)
    wanted = scale_of(X, granularity) * (np.abs(x) <= 1) * dy + through_mean
    assert (np.abs(X) > 1).mean() > 0.1
    np.testing.assert_allclose(found, wanted.reshape(X.shape), rtol=2e-5, atol=2e-6)


def test_the_clip_of_the_estimator_moves_and_goes():
    def passes(**options):
        quantizer = binary(QuantSpec(mask=options.pop("mask", None)), dynamic=False, **options)
        qparams = quantizer.init(jnp.asarray(X), 1.0)
        return np.asarray(jax.grad(lambda x: quantizer.apply(qparams, x, 1.0).sum())(jnp.asarray(X))) != 0

    np.testing.assert_array_equal(passes(), np.abs(X) <= 1)
    np.testing.assert_array_equal(passes(clip=0.5), np.abs(X) <= 0.5)
    assert passes(mask="none").all()


def test_a_static_scale_is_that_of_calibration():
    quantizer = binary(QuantSpec(), dynamic=False)
    qparams = quantizer.init(jnp.asarray(X), 1.0)
    np.testing.assert_array_equal(
        quantizer.apply(qparams, jnp.asarray(5 * X), 1.0), quantizer.apply(qparams, jnp.asarray(X), 1.0)
    )
    assert "calibrates_in_apply" not in quantizer.traits


def test_an_unsigned_tensor_has_the_levels_zero_and_the_mean_of_the_large():
    quantizer, x = binary(QuantSpec(signed=False)), np.maximum(X, 0)
    qparams = quantizer.init(jnp.asarray(x), 1.0)
    x_hat = np.asarray(quantizer.apply(qparams, jnp.asarray(X), 1.0))
    large = x >= 0.7 * x.mean()
    np.testing.assert_array_equal(x_hat > 0, large)
    np.testing.assert_allclose(x_hat[large], x[large].mean(dtype=np.float64), rtol=1e-6)
    assert (x_hat[~large] == 0).all()
    # An example does not depend on the others of its batch.
    np.testing.assert_array_equal(quantizer.apply(qparams, jnp.asarray(X[:1]), 1.0), x_hat[:1])


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_one_bit(signed):
    quantizer = binary(QuantSpec(signed))
    qparams = quantizer.init(jnp.asarray(X), 1.0)
    codes = quantizer.encode(qparams, jnp.asarray(X), 1.0)
    assert set(np.unique(codes.values)) == {0, 1}
    np.testing.assert_array_equal(decode(codes), quantizer.apply(qparams, jnp.asarray(X), 1.0))


@pytest.mark.parametrize("field", [{"symmetric": False}, {"range": "mse"}, {"rounding": "stochastic"}])
def test_what_it_has_no_use_for_is_refused(field):
    with pytest.raises(UnsupportedSpecError, match=f"binary .*{next(iter(field))}"):
        binary(QuantSpec(**field))
