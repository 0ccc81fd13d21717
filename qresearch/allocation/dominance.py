"""Which partial allocations no other one equals or beats in its loss and in every cost."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Num

_BLOCK = 64  # points compared pair by pair


def nondominated(
    cost: Num[np.ndarray, "constraint state"], loss: Float[np.ndarray, "state"]
) -> Int[np.ndarray, "kept"]:
    """Indices of the states that no other one equals or beats in loss and all costs; of equal ones the first.

    Complete for one and two constraints. With more, some dominated states stay: slower for the search, never wrong.
    """
    if len(cost) == 1:
        order = np.lexsort((loss, cost[0]))
        lowest_before = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
        return order[loss[order] < lowest_before]
    order = np.lexsort((*cost, loss))
    points = np.concatenate([cost[:, order].astype(np.float64), loss[None, order]])
    return order[_minima(points)]


def _minima(points: Float[np.ndarray, "objective point"]) -> Bool[np.ndarray, "point"]:
    """Which points no earlier one equals or beats everywhere; the points are sorted by the last objective.

    Divide and conquer (Kung, Luccio and Preparata, https://doi.org/10.1145/321906.321910, 1975): as the last objective
    is sorted, whether a point of the first half beats one of the second is decided by the other objectives, for two of
    them by a staircase.
    """
    count = points.shape[1]
    if count <= _BLOCK:
        earlier = ~np.tri(count, dtype=bool)
        beaten = np.all(points[:, :, None] <= points[:, None, :], axis=0) & earlier
        return np.all(~beaten, axis=0)
    half = count // 2
    first, second = _minima(points[:, :half]), _minima(points[:, half:])
    if len(points) == 3:
        x, y = points[:2, :half][:, first]
        order = np.argsort(x, kind="stable")
        lowest = np.concatenate([[np.inf], np.minimum.accumulate(y[order])])
        second &= lowest[np.searchsorted(x[order], points[0, half:], side="right")] > points[1, half:]
    return np.concatenate([first, second])
