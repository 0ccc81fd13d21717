from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.errors import GraphError
from qresearch.numerics.granularity import PER_TENSOR, Granularity, per_channel, per_group

X = jnp.arange(2 * 3 * 8, dtype=jnp.float32).reshape(2, 3, 8)


def scale_shape(granularity: Granularity, x=X) -> tuple[int, ...]:
    view = granularity.view(x)
    return jnp.max(view, axis=granularity.shared_axes(view.ndim), keepdims=True).shape


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PER_TENSOR, (1, 1, 1)),
        (per_channel(0), (2, 1, 1)),
        (per_channel(-1), (1, 1, 8)),
        (per_channel(-3), (2, 1, 1)),
        (per_channel(0, -1), (2, 1, 8)),
        (per_channel(0, 1, 2), (2, 3, 8)),
        (per_group(-1, 4), (2, 3, 2, 1)),
        (per_group(2, 8), (2, 3, 1, 1)),
        (per_group(0, 2), (1, 1, 3, 8)),
        (per_group(1, 1), (2, 3, 1, 8)),
    ],
)
def test_scales_have_the_rank_of_the_view_with_ones_on_shared_axes(granularity, shape):
    assert scale_shape(granularity) == shape


@pytest.mark.parametrize(
    "granularity", [PER_TENSOR, per_channel(1), per_group(-1, 4), per_group(1, 3), per_group(0, 1)]
)
def test_the_view_keeps_every_element_in_order(granularity):
    np.testing.assert_array_equal(granularity.view(X).reshape(X.shape), X)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_a_group_is_consecutive_elements_along_its_axis(axis):
    size = 2 if X.shape[axis] % 2 == 0 else 3
    granularity = per_group(axis, size)
    view = granularity.view(X)
    shared = granularity.shared_axes(view.ndim)
    assert len(shared) == 1
    groups = np.moveaxis(np.asarray(view), shared[0], -1).reshape(-1, size)
    lines = np.moveaxis(np.asarray(X), axis, -1).reshape(-1, X.shape[axis])
    wanted = {tuple(line[i : i + size]) for line in lines for i in range(0, len(line), size)}
    assert {tuple(group) for group in groups} == wanted


def test_a_group_that_does_not_divide_is_refused_with_the_numbers():
    with pytest.raises(GraphError, match=r"group_size 5 does not divide the 8 elements of axis 2"):
        per_group(-1, 5).view(X)


@pytest.mark.parametrize("size", [0, -4])
def test_a_group_has_at_least_one_element(size):
    with pytest.raises(GraphError, match=f"at least 1, got {size}"):
        per_group(0, size)


def test_equal_granularities_are_one_static_value():
    assert {per_channel(1), per_channel(1), per_group(0, 4), per_group(0, 4), PER_TENSOR} == {
        per_channel(1),
        per_group(0, 4),
        Granularity(),
    }
