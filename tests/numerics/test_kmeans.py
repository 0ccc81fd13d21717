from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.kmeans import SAMPLE, kmeans_levels, thresholds

RUN = jax.jit(kmeans_levels, static_argnums=2)


def error(x, levels, count):
    levels = np.asarray(levels, np.float64)[:count]
    return ((np.asarray(x, np.float64)[:, None] - levels) ** 2).min(1).mean()


def test_a_normal_gets_the_lloyd_max_levels():
    """Max, Quantizing for Minimum Distortion, 1960, table 1: the least errors of N(0, 1)."""
    size = 2**15
    x = jnp.asarray([NormalDist().inv_cdf((i + 0.5) / size) for i in range(size)], jnp.float32)
    for count, least in {2: 0.3634, 4: 0.1175, 8: 0.03454, 16: 0.009497, 32: 0.002499}.items():
        levels = RUN(x, jnp.int32(count), 256)
        assert abs(error(x, levels, count) / least - 1) < 0.01, count
        np.testing.assert_allclose(levels[:count], -levels[:count][::-1], atol=2e-2)  # symmetric, as the density is
        assert (levels[count:] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_levels_ascend_and_each_is_the_mean_of_what_is_nearest(seed):
    x = jax.random.laplace(jax.random.key(seed), (4000,))
    for count in (2, 8, 64):
        levels = RUN(x, jnp.int32(count), 256)[:count]
        assert (jnp.diff(levels) >= 0).all()
        nearest = np.abs(np.asarray(x)[:, None] - np.asarray(levels)).argmin(1)
        means = [np.asarray(x)[nearest == k].mean() for k in range(count) if (nearest == k).any()]
        kept = [levels[k] for k in range(count) if (nearest == k).any()]
        spread = float(x.max() - x.min())
        np.testing.assert_allclose(
            kept, means, atol=0.02 * spread / np.sqrt(count)
        )  # Lloyd's steps have nearly converged


def test_no_more_values_than_levels_are_kept_exactly():
    values = np.float32([-2, -0.5, 0, 0.25, 3])
    x = jnp.asarray(np.random.default_rng(0).choice(values, 500))
    for count in (8, 256):
        assert error(x, RUN(x, jnp.int32(count), 256), count) < 1e-12


@pytest.mark.parametrize("x", [np.zeros(7), np.full(7, 0.3), np.ones(1)])
def test_constants_give_finite_levels(x):
    for count in (1, 2, 256):
        levels = RUN(jnp.asarray(x, jnp.float32), jnp.int32(count), 256)
        assert np.isfinite(levels).all()
        assert error(x, levels, count) < 1e-12


def test_thresholds_are_midpoints_and_infinite_beyond_the_count():
    levels = jnp.asarray([-1.0, 0.0, 3.0, 5.0])
    np.testing.assert_array_equal(thresholds(levels, jnp.int32(3)), [-0.5, 1.5, np.inf])


def test_a_large_tensor_is_sampled_at_a_stride_that_favours_no_channel():
    x = jnp.tile(jnp.asarray([0.0, 1.0, 2.0, 3.0]), SAMPLE)  # a stride that divides 4 would see one value only
    np.testing.assert_allclose(RUN(x, jnp.int32(4), 256)[:4], [0, 1, 2, 3], atol=1e-5)
