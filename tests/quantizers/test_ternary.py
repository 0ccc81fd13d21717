from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError, on_view
from qresearch.quantizers.ternary import Ternary, ternary

X = np.random.default_rng(0).normal(0.1, 0.7, (4, 6, 32)).astype(np.float32)


def reference(x, granularity, factor=0.7):
    """Li et al. in float64: threshold, scale and values of every group."""
    view = granularity.view(x).astype(np.float64)
    axes = granularity.shared_axes(view.ndim)
    size = np.abs(view)
    threshold = factor * size.mean(axes, keepdims=True)
    kept = size > threshold
    scale = (size * kept).sum(axes, keepdims=True) / kept.sum(axes, keepdims=True)
    return scale, kept * np.sign(view)


@pytest.mark.parametrize("factor", [0.7, 0.4])
@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(-1, 8)])
def test_it_is_the_papers_formula(granularity, factor):
    quantizer = on_view(granularity, ternary(QuantSpec(granularity=granularity), threshold=factor))
    scale, signs = reference(X, granularity, factor)
    qparams = quantizer.init(jnp.asarray(X), 2.0)
    x_hat = quantizer.apply(qparams, jnp.asarray(X), 2.0)
    np.testing.assert_allclose(x_hat, (scale * signs).reshape(X.shape), rtol=1e-6)
    codes = quantizer.encode(qparams, jnp.asarray(X), 2.0)
    np.testing.assert_array_equal(codes.values, signs)
    assert codes.codebook is None  # plain integers: -1, 0, 1
    assert set(np.unique(codes.values)) == {-1, 0, 1}


def test_its_error_on_normal_data_is_near_the_best_of_all_thresholds():
    x = np.random.default_rng(1).normal(0, 1, 100_000).astype(np.float32)

    def error(factor):
        scale, signs = reference(x, PER_TENSOR, factor)
        return ((scale * signs - x) ** 2).mean()

    best = min(error(factor) for factor in np.linspace(0.3, 1.2, 91))
    quantizer = ternary(QuantSpec())
    x_hat = np.asarray(quantizer.apply(Ternary(None, None), jnp.asarray(x), 2.0), np.float64)
    assert best <= ((x_hat - x) ** 2).mean() <= 1.01 * best
    assert abs(best - 0.1902) < 0.003  # Max (1960): three levels of N(0, 1)


@pytest.mark.parametrize(("mask", "reach"), [(None, np.inf), ("none", np.inf), ("rounded", 1.5), ("unrounded", 1.0)])
def test_the_gradient_passes_straight_through(mask, reach):
    quantizer = ternary(QuantSpec(mask=mask))
    upstream = np.cos(np.arange(X.size)).reshape(X.shape).astype(np.float32)
    found = jax.grad(lambda x: (quantizer.apply(Ternary(None, None), x, 2.0) * upstream).sum())(jnp.asarray(X))
    inside = np.abs(X) <= reach * reference(X, PER_TENSOR)[0]
    assert inside.all() == (reach == np.inf)
    np.testing.assert_array_equal(found, np.where(inside, upstream, 0))
    assert ("passes_gradient" in quantizer.traits) == (reach == np.inf)


def test_a_static_grid_is_that_of_calibration():
    quantizer = ternary(QuantSpec(), dynamic=False)
    qparams = quantizer.init(jnp.asarray(X), 2.0)
    np.testing.assert_array_equal(quantizer.apply(qparams, jnp.asarray(X), 2.0), DYNAMIC(X))
    scale, _ = reference(X, PER_TENSOR)
    found = np.unique(quantizer.apply(qparams, jnp.asarray(9 * X), 2.0))
    np.testing.assert_allclose(found, np.concatenate([-scale.ravel(), [0], scale.ravel()]), rtol=1e-6)


def DYNAMIC(x):
    return ternary(QuantSpec()).apply(Ternary(None, None), jnp.asarray(x), 2.0)


def test_an_unsigned_tensor_has_two_levels_and_no_batch_dependence():
    quantizer, x = ternary(QuantSpec(signed=False)), np.maximum(X, 0)
    qparams = quantizer.init(jnp.asarray(X), 2.0)
    x_hat = np.asarray(quantizer.apply(qparams, jnp.asarray(X), 2.0))
    scale, signs = reference(x, PER_TENSOR)
    np.testing.assert_allclose(x_hat, scale * signs, rtol=1e-6)
    np.testing.assert_array_equal(quantizer.apply(qparams, jnp.asarray(X[:1]), 2.0), x_hat[:1])
    assert set(np.unique(quantizer.encode(qparams, jnp.asarray(X), 2.0).values)) == {0, 1}


@pytest.mark.parametrize("field", [{"symmetric": False}, {"range": "mse"}, {"rounding": "floor"}])
def test_what_it_has_no_use_for_is_refused(field):
    with pytest.raises(UnsupportedSpecError, match=f"ternary .*{next(iter(field))}"):
        ternary(QuantSpec(**field))
