"""An allocator: one option for all layers, or for each its best one where the budget has room for that."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from qresearch.allocation import Problem, check_budgets, merge_groups
from qresearch.allocation.budgets import affordable, best_affordable
from qresearch.allocation.problem import Key
from qresearch.allocation.uniform import uniform_candidates


def allocate(key: Key, problem: Problem, budgets: ArrayLike) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The candidate of least loss within each budget: a uniform one, the best everywhere, or the cheapest."""
    start = time.perf_counter()
    limits, (merged, index) = check_budgets(problem, budgets), merge_groups(problem)
    best = np.where(merged.allowed, merged.loss, np.inf).argmin(axis=1)
    cheapest = [found for found in (affordable(merged, limit) for limit in limits) if found is not None]
    candidates = np.stack([best, *uniform_candidates(merged), *cheapest])
    return best_affordable(merged, candidates, limits)[:, index], {"seconds": time.perf_counter() - start}
