"""Budgets: the limits that costs are compared with, what is within them, and the errors where nothing is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Num
from numpy.typing import ArrayLike

from qresearch.allocation.dynamic_program import solve
from qresearch.allocation.problem import Allocations, Problem, first_options, merge_groups
from qresearch.errors import BudgetError, ConfigError

# Float costs (measured latencies) are equal within this relative error: their sums depend on the order of summation.
# Integer costs are compared exactly. Used in ``_limit`` and nowhere else: a limit is a budget with its tolerance.
COST_TOLERANCE = 1e-9

Limits = Num[np.ndarray, "budget constraint"]


def check_budgets(problem: Problem, budgets: ArrayLike) -> Limits:
    """The limits [budget, constraint] that costs are compared with: the budgets, with their tolerance.

    Raises ``BudgetError`` for the first budget that no allocation meets, with the smallest one that could be met.
    """
    given, limits = _limits(problem, budgets)
    merged, _ = merge_groups(problem)
    least = np.where(merged.allowed, merged.costs, merged.costs.max()).min(axis=2).sum(axis=1)
    for budget, limit in zip(given, limits):
        for c in np.flatnonzero(limit < least):
            raise BudgetError(
                f"{problem.constraint_names[c]}: budget {budget[c].item()} is below {least[c].item()}, the cost of the"
                f" cheapest allocation; give at least {least[c].item()}"
            )
        if affordable(merged, limit) is None:
            raise BudgetError(_jointly_impossible(merged, budget, limit))
    return limits


def affordable(problem: Problem, limit: Num[np.ndarray, "constraint"]) -> Int[np.ndarray, "layer"] | None:
    """A cheap allocation within the limit, or None where there is none. For one constraint: the cheapest.

    The problem's groups must be merged.
    """
    scale = np.where(limit > 0, limit, 1).astype(np.float64)
    relative = problem.costs / scale[:, None, None]
    # Summed costs first, then each alone; equally cheap options are told apart by their loss.
    for size in [relative.sum(axis=0), *relative]:
        allocation = first_options(problem, size, problem.loss)
        if np.all(problem.total_cost(allocation) <= limit):
            return allocation
    found = None if len(limit) == 1 else _least_first_cost(problem, limit)
    return found if found is not None and problem.total_cost(found)[0] <= limit[0] else None


def within(problem: Problem, allocations: Allocations, limits: Limits) -> Bool[np.ndarray, "budget candidate"]:
    """Which candidates [candidate, layer] meet which limits [budget, constraint]."""
    return np.all(problem.total_cost(allocations) <= limits[:, None], axis=-1)


def best_affordable(
    problem: Problem, candidates: Int[np.ndarray, "candidate layer"], limits: Limits
) -> Int[np.ndarray, "budget layer"]:
    """For every budget the candidate of least loss within it, the first of equal ones. Every budget must have one.

    Because a larger budget chooses among all that a smaller one can afford, its loss is never higher.
    """
    met = within(problem, candidates, limits)
    assert met.any(axis=1).all(), "an allocator has found nothing within a feasible budget"
    return candidates[np.where(met, problem.total_loss(candidates), np.inf).argmin(axis=1)]


def _limits(problem: Problem, budgets: ArrayLike) -> tuple[np.ndarray, Limits]:
    given, constraints = np.asarray(budgets), len(problem.costs)
    given = given.astype(np.int64) if given.dtype.kind == "u" else given
    if constraints == 1 and given.ndim < 2:
        given = given.reshape(-1, 1)
    if given.ndim != 2 or given.shape[1] != constraints or given.dtype.kind not in "if" or not given.size:
        raise ConfigError(f"budgets must be numbers of shape [budget, {constraints}], got {given.tolist()}")
    if np.isnan(given).any():
        raise BudgetError(f"budgets must be numbers, got {given.tolist()}")
    # No allocation costs more than this, and an infinite budget has no integer.
    greatest = np.where(problem.allowed, problem.costs, 0).max(axis=2).sum(axis=1)
    return given, _limit(np.clip(given, -1, greatest), problem.costs.dtype)


def _limit(budget: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return budget + COST_TOLERANCE * np.abs(budget)
    if budget.dtype.kind == "f":  # 4.35 * 100 is 434.99999999999994: undo the rounding of the caller's arithmetic
        budget = np.floor(budget + np.minimum(4 * np.finfo(np.float64).eps * np.abs(budget), 0.5))
    return budget.astype(dtype)


def _least_first_cost(problem: Problem, limit: np.ndarray) -> Int[np.ndarray, "layer"] | None:
    """The allocation with the least cost in the first constraint that meets the other ones."""
    first_cost = np.where(problem.allowed, problem.costs[0].astype(np.float64), np.inf)
    return solve(first_cost, problem.costs[1:], limit[1:]).allocation


def _jointly_impossible(problem: Problem, budget: np.ndarray, limit: np.ndarray) -> str:
    names = problem.constraint_names
    given = ", ".join(f"{name} {value.item()}" for name, value in zip(names, budget))
    message = f"budget ({given}) can be met constraint by constraint, but not by one allocation"
    found = _least_first_cost(problem, limit)
    if found is None:
        return f"{message}: give more of {' or '.join(names)}"
    least = problem.total_cost(found)[0].item()
    return f"{message}: give {names[0]} at least {least}, or more of {' or '.join(names[1:])}"
