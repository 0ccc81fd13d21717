from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.numerics.ranges_statistics import (
    MOMENTUM,
    SUB_BATCHES,
    absmax_range,
    minmax_range,
    moving_average_range,
    percentile_range,
)

X = np.random.default_rng(5).gumbel(0.3, 1, (37, 5, 40)).astype(np.float32)
GRIDS = {"signed": (True, True), "unsigned": (False, True), "affine": (False, False), "signed_affine": (True, False)}


def around_zero(low, high, grid):
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    return (np.zeros_like(low) if grid == "unsigned" else low), high


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2), (2,)])
def test_absmax_mirrors_the_largest_magnitude(grid, axes):
    largest = np.abs(X).max(axes, keepdims=True)
    wanted = around_zero(-largest, largest, grid)
    np.testing.assert_array_equal(absmax_range(jnp.asarray(X), 4.0, axes, *GRIDS[grid], False), wanted)


def test_absmax_and_minmax_are_the_same_bound_for_a_symmetric_signed_grid():
    for x in (X, -X):
        low, high = minmax_range(jnp.asarray(x), 4.0, (0, 1, 2), True, True, False)
        assert jnp.maximum(-low, high) == absmax_range(jnp.asarray(x), 4.0, (0, 1, 2), True, True, False)[1]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2), (1, 2), (2,)])
def test_the_moving_average_is_the_recursion_over_sub_batches(grid, axes):
    """With 37, 5 and 40 elements: parts of 3 with a last one of 1, parts of 1, and parts of 3 with a last one of 1."""
    length = -(-X.shape[axes[0]] // SUB_BATCHES)
    parts = np.split(X, range(length, X.shape[axes[0]], length), axis=axes[0])
    low, high = (getattr(parts[0], reduce)(axes, keepdims=True) for reduce in ("min", "max"))
    for part in parts[1:]:
        low = MOMENTUM * low + (1 - MOMENTUM) * part.min(axes, keepdims=True)
        high = MOMENTUM * high + (1 - MOMENTUM) * part.max(axes, keepdims=True)
    found = moving_average_range(jnp.asarray(X), 4.0, axes, *GRIDS[grid], False)
    np.testing.assert_allclose(found, around_zero(low, high, grid), rtol=1e-6, atol=1e-6)


def test_the_moving_average_of_one_sub_batch_is_minmax_and_an_outlier_is_averaged_down():
    whole = minmax_range(jnp.asarray(X[:1]), 4.0, (0, 1, 2), True, False, False)
    np.testing.assert_array_equal(moving_average_range(jnp.asarray(X[:1]), 4.0, (0, 1, 2), True, False, False), whole)
    x = jnp.ones((16, 8)).at[5, 3].set(100.0)
    found = moving_average_range(x, 4.0, (0, 1), False, True, False)[1].item()
    assert found == pytest.approx(1 + 99 * 0.1 * 0.9**10)
    np.testing.assert_array_equal(
        moving_average_range(x, 4.0, (), True, True, False), minmax_range(x, 4.0, (), True, True, False)
    )


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2), (2,)])
@pytest.mark.parametrize("percentile", [90.0, 99.9])
def test_the_percentile_cuts_both_tails(grid, axes, percentile):
    wanted = around_zero(*np.percentile(X, [100 - percentile, percentile], axis=axes, keepdims=True), grid)
    found = percentile_range(percentile)(jnp.asarray(X), 4.0, axes, *GRIDS[grid], False)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_percentile_of_a_large_tensor_is_that_of_a_sample():
    x = jax.random.normal(jax.random.key(0), (1024, 700))
    low, high = percentile_range(99.9)(x, 4.0, (0, 1), True, True, False)
    # 3.0902 is the 99.9 % point of N(0, 1); its standard error with 262,144 draws is 0.018.
    assert abs(high.item() - 3.0902) < 0.05
    assert abs(low.item() + 3.0902) < 0.05


def test_hundred_per_cent_is_minmax():
    found = percentile_range(100.0)(jnp.asarray(X), 4.0, (0, 2), True, False, False)
    np.testing.assert_array_equal(found, minmax_range(jnp.asarray(X), 4.0, (0, 2), True, False, False))
