"""The optimum: dynamic programming with bounds, for any number of constraints, integer or float costs, and groups."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Int, Num
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import check_budgets
from qresearch.allocation.dynamic_program import solve
from qresearch.allocation.greedy import descend
from qresearch.allocation.problem import Key, Problem, merge_groups


def allocate(key: Key, problem: Problem, budgets: ArrayLike) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The allocation of least loss within each budget, proven optimal; see ``dynamic_program`` for how.

    The integer program of HAWQ-V3 (Yao et al., https://arxiv.org/abs/2011.10680, 2021), whose published ResNet-18 bits
    this returns; they call an ILP solver. Of allocations with equal losses the cheapest is returned. The greedy
    allocation is the first upper bound. The key is not used. ``info["states"]``: partial allocations looked at, per
    budget; thousands are usual, and what grows is time and memory, never the error.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    merged, index = merge_groups(problem)
    found, states = descend(merged, limits), []
    for i, upper in enumerate(merged.total_loss(found)):
        solution = solve(merged.loss, merged.costs, limits[i], float(upper))
        assert solution.allocation is not None, "the greedy allocation is within the limits"
        found[i] = solution.allocation
        states.append(solution.states)
    return found[:, index], {"states": states, "seconds": time.perf_counter() - start}


def optimum(problem: Problem, limit: Num[np.ndarray, "constraint"]) -> Int[np.ndarray, "layer"]:
    """The allocation of least loss within a limit of ``check_budgets``. The problem's groups must be merged."""
    allocation = solve(problem.loss, problem.costs, limit).allocation
    assert allocation is not None, "check_budgets lets no such budget through"
    return allocation
