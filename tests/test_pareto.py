from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.errors import ConfigError
from qresearch.pareto import attainment, hypervolume, interpolate_front, pareto_front

# Few distinct values, so that ties and repeated points are common.
VALUES = st.one_of(st.integers(0, 8).map(float), st.floats(0, 8, allow_subnormal=False))
POINTS = st.lists(st.tuples(VALUES, VALUES), max_size=25).map(lambda points: np.array(points).reshape(-1, 2))
REFERENCE = (7.0, 1.0)
examples = settings(max_examples=150, deadline=None, derandomize=True)


def is_beaten(points: np.ndarray, i: int) -> bool:
    """Another point is at least as good in both: better in one, or equal and earlier."""
    cost, score = points.T
    return any(
        cost[j] <= cost[i] and score[j] >= score[i] and (cost[j] < cost[i] or score[j] > score[i] or j < i)
        for j in range(len(points))
        if j != i
    )


def area(points: np.ndarray, reference: tuple[float, float]) -> float:
    """The union of the rectangles between the points and the reference, cell by cell of the grid they span."""
    cost, score = points.T
    xs = np.unique([c for c in (*cost, reference[0]) if c <= reference[0]])
    ys = np.unique([s for s in (*score, reference[1]) if s >= reference[1]])
    return sum(
        (right - left) * (top - bottom)
        for left, right in itertools.pairwise(xs)
        for bottom, top in itertools.pairwise(ys)
        if np.any((cost <= left) & (score >= top))
    )


@examples
@given(POINTS)
def test_front_equals_brute_force(points):
    front = pareto_front(*points.T)
    assert set(front) == {i for i in range(len(points)) if not is_beaten(points, i)}
    assert np.all(np.diff(points[front, 0]) > 0)
    assert np.all(np.diff(points[front, 1]) > 0)


@examples
@given(POINTS)
def test_front_of_a_front_is_itself(points):
    front = points[pareto_front(*points.T)]
    assert pareto_front(*front.T).tolist() == list(range(len(front)))


def test_front_by_hand():
    cost, score = [3, 1, 2, 2, 4, 1], [0.9, 0.5, 0.4, 0.8, 0.9, 0.5]
    assert pareto_front(cost, score).tolist() == [1, 3, 0]
    assert np.issubdtype(pareto_front([], []).dtype, np.integer)
    assert pareto_front([1, 2, np.nan], [np.nan, 0.5, 0.9]).tolist() == [1]
    assert pareto_front([1, 2], [-np.inf, 0.5]).tolist() == [0, 1]


@examples
@given(POINTS)
def test_hypervolume_equals_the_area_of_the_union(points):
    np.testing.assert_allclose(hypervolume(*points.T, REFERENCE), area(points, REFERENCE), rtol=1e-9, atol=1e-12)


@examples
@given(POINTS, POINTS)
def test_hypervolume_grows_with_points_and_is_bounded(points, more):
    both = np.concatenate([points, more])
    alone, together = hypervolume(*points.T, REFERENCE), hypervolume(*both.T, REFERENCE)
    rounding = 1e-12 * (1 + together)
    assert 0 <= alone <= together + rounding
    assert together <= alone + hypervolume(*more.T, REFERENCE) + rounding
    assert together <= (REFERENCE[0] - 0) * (8 - REFERENCE[1]) + rounding


def test_hypervolume_by_hand():
    """Two steps: (10 − 2)·(0.5 − 0.1) + (10 − 4)·(0.9 − 0.5)."""
    assert hypervolume([2, 4], [0.5, 0.9], (10, 0.1)) == pytest.approx(5.6)
    assert hypervolume([2, 4, 3], [0.5, 0.9, 0.2], (10, 0.1)) == pytest.approx(5.6)


def test_points_beyond_the_reference_contribute_nothing():
    """The last point is cheaper than all, and worse than the worst score that counts."""
    inside = hypervolume([2], [0.5], (10, 0.1))
    assert hypervolume([2, 10, 11, 1], [0.5, 0.9, 1.0, 0.1], (10, 0.1)) == inside
    assert hypervolume([11], [0.05], (10, 0.1)) == 0
    assert hypervolume([np.nan, 2], [0.9, 0.5], (10, 0.1)) == inside
    assert hypervolume([], [], (10, 0.1)) == 0


@examples
@given(POINTS, st.lists(VALUES, min_size=1, max_size=6))
def test_interpolation_is_the_best_affordable_score(points, at):
    found = interpolate_front(*points.T, at)
    wanted = [max((s for c, s in points if c <= limit), default=np.nan) for limit in at]
    np.testing.assert_array_equal(found, wanted)


def test_interpolation_keeps_the_shape_of_at():
    assert interpolate_front([1], [0.5], 2.0) == 0.5
    assert np.isnan(interpolate_front([1], [0.5], 0.5))
    assert interpolate_front([1], [0.5], np.ones((2, 3))).shape == (2, 3)


def test_attainment_is_one_row_per_run():
    found = attainment([[1, 3], [2]], [[0.5, 0.9], [0.7]], [1, 2, 3])
    np.testing.assert_array_equal(found, [[0.5, 0.5, 0.9], [np.nan, 0.7, 0.7]])
    assert attainment([], [], [1, 2, 3]).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto_front([1, 2], [1]), r"one length, got \(2,\) and \(1,\)"),
        (lambda: hypervolume([[1]], [[1]], (1, 0)), "must be"),
        (lambda: attainment([[1]], [], [1]), "costs of 1 runs and scores of 0"),
    ],
)
def test_what_is_no_set_of_points_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
