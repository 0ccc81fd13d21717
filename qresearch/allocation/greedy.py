"""Greedy descent: from the best options, always the change that costs the least loss per unit of cost saved."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import affordable, best_affordable, check_budgets
from qresearch.allocation.hull import Descent, descend_hull
from qresearch.allocation.problem import Key, Problem, lowest_loss, merge_groups


def allocate(key: Key, problem: Problem, budgets: ArrayLike) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """Greedy descent from the best option everywhere until the budget is met.

        next change = argmin over layers l and cheaper options o of (loss[l, o] − loss[l]) / (cost[l] − cost[l, o])

    One descent serves all budgets of one constraint, so a larger budget stops earlier on the same path. With several,
    cost is the sum of those constraints that the path violates, each relative to its greatest total, and a budget takes
    the best answer found for any budget of the call that it affords. The key is not used.

    Pandey et al., A Practical Mixed Precision Algorithm for Post-Training Quantization (AIMET's AMP),
    https://arxiv.org/abs/2302.05397, 2023. They stop at an accuracy, measured anew after every change; we stop at a
    budget, on the additive losses of the table, and a change may skip options.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    merged, index = merge_groups(problem)
    found = descend(merged, limits)
    return found[:, index], {"seconds": time.perf_counter() - start}


def descend(problem: Problem, limits: Num[np.ndarray, "budget constraint"]) -> Int[np.ndarray, "budget layer"]:
    """The greedy allocation within each limit, each of which can be met. The problem's groups must be merged."""
    descents: dict[tuple[int, ...], Descent] = {}
    found = [_within(problem, limit, descents) for limit in limits]
    return best_affordable(problem, np.array(found, int).reshape(len(limits), len(problem.loss)), limits)


def _within(
    problem: Problem, limit: Num[np.ndarray, "constraint"], descents: dict[tuple[int, ...], Descent]
) -> Int[np.ndarray, "layer"]:
    """Follows the descent of the violated constraints; starts again with those that it violates on the way.

    A descent need not meet several constraints together; then a cheap allocation stands in.
    """
    allocation, violated = lowest_loss(problem), np.zeros(len(limit), bool)
    while np.any(over := problem.total_cost(allocation) > limit):
        if violated[over].all():
            cheap = affordable(problem, limit)
            assert cheap is not None, "check_budgets lets no such budget through"
            return cheap
        violated |= over
        chosen = tuple(np.flatnonzero(violated).tolist())
        if chosen not in descents:
            descents[chosen] = descend_hull(problem, _sizes(problem, list(chosen)))
        descent = descents[chosen]
        met = (descent.cost <= limit)[:, chosen].all(axis=1)
        allocation = descent.after(int(met.argmax()) if met.any() else len(descent.layer))
    return allocation


def _sizes(problem: Problem, constraints: list[int]) -> Float[np.ndarray, "layer option"]:
    """The summed costs of these constraints, each relative to its greatest total."""
    costs = problem.costs[constraints]
    greatest = np.maximum(costs.max(axis=2).sum(axis=1), np.finfo(np.float64).tiny)
    return (costs / greatest[:, None, None]).sum(axis=0)
