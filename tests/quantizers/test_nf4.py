from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from qresearch.numerics.codes import decode
from qresearch.numerics.granularity import PER_TENSOR, per_channel, per_group
from qresearch.quantizers.base import QuantSpec, UnsupportedSpecError, on_view
from qresearch.quantizers.minmax import minmax
from qresearch.quantizers.nf4 import LAST_QUANTILE, NF4, nf4, normal_float_levels

X = np.random.default_rng(0).normal(0, 0.7, (4, 6, 64)).astype(np.float32)
LEVELS = np.asarray(normal_float_levels(signed=True), np.float32)


def test_the_levels_are_the_authors_construction():
    """Dettmers et al.'s create_normal_map, written with scipy: 8 quantiles above zero, 7 below, divided by the last."""
    above = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    wanted = np.sort(np.concatenate([above, [0.0], below])) / above.max()
    np.testing.assert_allclose(normal_float_levels(signed=True), wanted, rtol=1e-13, atol=1e-15)


def test_the_last_quantile_is_the_one_the_paper_derives():
    assert abs(LAST_QUANTILE - (1 - (1 / 32 + 1 / 30) / 2)) < 1e-7


@pytest.mark.parametrize(("signed", "above", "below"), [(True, 8, 7), (False, 15, 0)])
def test_the_levels_split_the_probability_evenly_and_hold_zero(signed, above, below):
    levels = np.asarray(normal_float_levels(signed))
    assert len(levels) == 16
    assert (np.diff(levels) > 0).all()
    assert levels[below] == 0
    assert levels[-1] == 1
    assert levels[0] == (-1 if signed else 0)
    mass = norm.cdf(levels * norm.ppf(LAST_QUANTILE))
    for side, steps in ((mass[below:], above), (mass[: below + 1], below)):
        np.testing.assert_allclose(np.diff(side), (LAST_QUANTILE - 0.5) / steps if steps else [], rtol=1e-12)


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_group(-1, 64), per_group(-1, 16)])
def test_every_value_goes_to_the_nearest_level_of_its_block(granularity):
    quantizer = on_view(granularity, nf4(QuantSpec(granularity=granularity)))
    qparams = quantizer.init(jnp.asarray(X), 4.0)
    view = granularity.view(X)
    scale = np.abs(view).max(granularity.shared_axes(view.ndim), keepdims=True)
    np.testing.assert_array_equal(qparams.scale, scale)
    index = np.abs((view / scale)[..., None].astype(np.float64) - LEVELS.astype(np.float64)).argmin(-1)
    x_hat = quantizer.apply(qparams, jnp.asarray(X), 4.0)
    np.testing.assert_array_equal(x_hat, (LEVELS[index] * scale).reshape(X.shape))
    codes = quantizer.encode(qparams, jnp.asarray(X), 4.0)
    np.testing.assert_array_equal(codes.values, index)
    np.testing.assert_array_equal(decode(codes).reshape(X.shape), x_hat)


def test_every_level_is_a_fixed_point_and_used_by_normal_data():
    quantizer = nf4(QuantSpec())
    qparams = NF4(jnp.full((1,), 0.37))
    x = jnp.asarray(LEVELS) * 0.37
    np.testing.assert_array_equal(quantizer.apply(qparams, x, 4.0), x)
    np.testing.assert_array_equal(quantizer.encode(qparams, x, 4.0).values, np.arange(16))
    drawn = jax.random.normal(jax.random.key(0), (2000,)) * 0.2
    assert len(np.unique(quantizer.encode(qparams, drawn, 4.0).values)) == 16


def test_in_blocks_of_normal_weights_it_beats_four_bit_integers():
    spec = QuantSpec(granularity=per_group(-1, 64))
    x = jax.random.normal(jax.random.key(0), (64, 512))

    def error(factory):
        quantizer = on_view(spec.granularity, factory(spec))
        return ((quantizer.apply(quantizer.init(x, 4.0), x, 4.0) - x) ** 2).mean()

    assert error(nf4) < 0.8 * error(minmax)


@pytest.mark.parametrize(
    ("mask", "everywhere"), [(None, False), ("rounded", False), ("unrounded", False), ("none", True)]
)
def test_the_gradient_stops_beyond_the_last_level(mask, everywhere):
    quantizer, scale = nf4(QuantSpec(mask=mask)), np.float32(0.8)
    slope = jax.grad(lambda x: quantizer.apply(NF4(jnp.full((1, 1, 1), scale)), x, 4.0).sum())(jnp.asarray(X))
    assert 0.1 < (np.abs(X) > scale).mean() < 0.5
    np.testing.assert_array_equal(slope, (np.abs(X) <= scale) | everywhere)


def test_unsigned_tensors_use_sixteen_levels_of_the_half_normal():
    quantizer = nf4(QuantSpec(signed=False))
    qparams = quantizer.init(jnp.asarray(X), 4.0)
    assert qparams.scale.item() == X.max()
    x_hat = np.asarray(quantizer.apply(qparams, jnp.asarray(X), 4.0))
    assert (x_hat[X <= 0] == 0).all()
    assert len(np.unique(x_hat)) == 16


@pytest.mark.parametrize("field", [{"symmetric": False}, {"rounding": "stochastic"}])
def test_what_it_has_no_use_for_is_refused(field):
    with pytest.raises(UnsupportedSpecError, match=f"nf4 .*{next(iter(field))}"):
        nf4(QuantSpec(**field))
