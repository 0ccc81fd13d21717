"""Mixed-integer linear programming through HiGHS: the allocator that the literature calls ILP."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import best_affordable, check_budgets
from qresearch.allocation.greedy import descend
from qresearch.allocation.problem import Key, Problem, merge_groups
from qresearch.errors import ConfigError

ROWS = 1e6  # what limits are scaled to: the solver lets a row exceed its limit by 1e-6
COLUMNS = 1e4  # what losses are scaled to: the solver may stop 1e-6 above the optimum
MAX_CUTS = 100


def allocate(key: Key, problem: Problem, budgets: ArrayLike) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The allocation of least loss within each budget: one 0/1 variable per layer and option, one row per constraint.

    HAWQ-V3 (Yao et al., https://arxiv.org/abs/2011.10680, 2021), whose published ResNet-18 bits this returns; solved by
    HiGHS (Huangfu and Hall, https://doi.org/10.1007/s12532-017-0130-5, 2018) through ``scipy.optimize.milp``. The
    solver works with tolerances: losses within 1e-10 of each other (relative to the greedy allocation's) are equal to
    it, and any may be returned; an answer that is over a budget by less than its tolerance is cut off and the program
    solved again, so that budgets hold exactly (``info["cuts"]`` counts these). Options that no allocation better than
    the greedy one can contain are left out. The key is not used.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    merged, index = merge_groups(problem)
    found, cuts = descend(merged, limits), []
    for i, upper in enumerate(merged.total_loss(found)):
        found[i], count = _solve(merged, limits[i], float(upper))
        cuts.append(count)
    found = best_affordable(merged, found, limits)
    return found[:, index], {"cuts": cuts, "seconds": time.perf_counter() - start}


def _solve(
    problem: Problem, limit: Num[np.ndarray, "constraint"], upper: float
) -> tuple[Int[np.ndarray, "layer"], int]:
    """The optimum within the limit, given the loss of an allocation within it, and the number of cuts."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # costs 0.2 s, which every start would pay for
    from scipy.sparse import csr_array

    loss, kept, room = _worthwhile(problem, upper)
    layer, option = np.nonzero(kept)
    columns = np.arange(len(layer))
    scale = ROWS / np.where(limit > 0, limit, 1)
    rows = problem.costs[:, layer, option] * scale[:, None]
    constraints = [
        LinearConstraint(rows, ub=limit * scale),
        LinearConstraint(csr_array((np.ones(len(layer)), (layer, columns))), 1, 1),
    ]
    objective = loss[layer, option] * (COLUMNS / room if room > 0 else 0.0)
    for cuts in range(MAX_CUTS):
        result = milp(
            objective,
            integrality=np.ones(len(layer)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            raise ConfigError(f"the integer program was not solved: {result.message}")
        chosen = np.zeros(len(loss), int)
        taken = np.flatnonzero(result.x > 0.5)
        chosen[layer[taken]] = option[taken]
        if np.all(problem.total_cost(chosen) <= limit):
            return chosen, cuts
        constraints.append(LinearConstraint(np.isin(columns, taken).astype(float)[None], ub=len(loss) - 1))
    raise ConfigError(
        f"the integer program gave {MAX_CUTS} allocations that are over the budget by less than its solver's tolerance:"
        " round the costs to a coarser unit, or use allocator exact"
    )


def _worthwhile(
    problem: Problem, upper: float
) -> tuple[Float[np.ndarray, "layer option"], Bool[np.ndarray, "layer option"], float]:
    """Losses above each layer's least, the options that an allocation of at most ``upper`` can contain, and what such
    an allocation can lose above the least.
    """
    least = problem.loss.min(axis=1)
    room = max(upper - least.sum(), 0.0)
    slack = 1e-12 * (abs(upper) + np.abs(least).sum())
    above = problem.loss - least[:, None]
    return above, problem.allowed & (above <= room + slack), room
