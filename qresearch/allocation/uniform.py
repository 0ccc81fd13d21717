"""The same option for all layers: the baseline that every mixed allocation is compared with."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import affordable, best_affordable, check_budgets, within
from qresearch.allocation.problem import Key, Problem, merge_groups, relative_cost


def allocate(key: Key, problem: Problem, budgets: ArrayLike) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The uniform allocation of least loss within each budget.

    There is one candidate per option: every layer takes it, and a layer that may not takes its allowed option that is
    nearest in cost from below, else its cheapest. So a pinned layer (one allowed option: a first or last layer at 8
    bits) keeps its own. Where no candidate is within a budget that can be met, the cheapest allocation stands in, and
    ``info["substitutes"]`` counts those budgets. The key is not used.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    merged, index = merge_groups(problem)
    uniform = uniform_candidates(merged)
    unmet = limits[~within(merged, uniform, limits).any(axis=1)]
    cheapest = [found for found in (affordable(merged, limit) for limit in unmet) if found is not None]
    candidates = np.stack([*uniform, *cheapest])
    info = {
        "family": "uniform",
        "substitutes": len(unmet),
        "seconds": time.perf_counter() - start,
    }
    return best_affordable(merged, candidates, limits)[:, index], info


def uniform_candidates(problem: Problem) -> Int[np.ndarray, "option layer"]:
    """The allocation that stands for each option, as documented above. Cost: summed relative to each constraint."""
    cost = relative_cost(problem)
    return np.stack([_nearest(problem, cost, option) for option in range(cost.shape[1])])


def _nearest(problem: Problem, cost: Float[np.ndarray, "layer option"], option: int) -> Int[np.ndarray, "layer"]:
    allowed, wanted = problem.allowed, cost[:, option, None]
    below = np.where(allowed & (cost <= wanted), cost, -np.inf)
    cheapest = np.where(allowed, cost, np.inf).min(axis=1, keepdims=True)
    target = np.where(np.isneginf(below).all(axis=1, keepdims=True), cheapest, below.max(axis=1, keepdims=True))
    nearest = np.where(allowed & (cost == target), problem.loss, np.inf).argmin(axis=1)
    return np.where(allowed[:, option], option, nearest)
