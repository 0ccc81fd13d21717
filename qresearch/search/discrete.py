"""From learned widths back to the menus: the nearest allocation that uses a budget up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from qresearch.allocation import ALLOCATORS, Problem

SPARE = 0.01  # the share of a budget that may be left over
# What spending the whole budget is worth, in the greatest sum of distances, from nothing to more than any distance.
REWARDS = (0.0, *(4.0**power for power in range(-5, 8)))


def allocate_near(
    distance: Float[np.ndarray, "layer option"],
    problem: Problem,
    limit: Float[np.ndarray, ""] | float,
    spend: bool = True,
) -> Int[np.ndarray, "layer"]:
    """The allocation of least distance, summed over layers, that costs at most ``limit`` and at least 99 % of it, or
    nearly as much as the menus can spend within it. Without ``spend`` the limit is an upper one only.

    Minimises distance - reward · cost / limit exactly, for rewards that grow until enough is spent. (With a second
    constraint from below in their place, partial allocations no longer dominate each other: 20 layers took too long.)
    """
    allowed = np.isfinite(distance)
    dearest = np.where(allowed, problem.costs[0], 0).max(axis=1).sum()
    target = min(limit, dearest)
    if target <= 0 or not spend:  # everything is pruned, or free
        return ALLOCATORS["exact"](0, replace(problem, loss=distance), np.asarray([limit]))[0][0]
    spread = np.where(allowed, distance, -np.inf).max(axis=1) - distance.min(axis=1)
    scale = spread.sum() or 1.0
    for reward in REWARDS:
        worth = distance - reward * scale * problem.costs[0] / target
        allocation = ALLOCATORS["exact"](0, replace(problem, loss=worth), np.asarray([limit]))[0][0]
        if problem.total_cost(allocation).item() >= (1 - SPARE) * target:
            break
    return allocation
