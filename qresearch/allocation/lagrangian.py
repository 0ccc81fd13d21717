"""Lagrangian relaxation: budgets become prices, and every layer takes the option that is best at them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import affordable, best_affordable, check_budgets
from qresearch.allocation.dynamic_program import relaxed_prices
from qresearch.allocation.hull import descend_hull
from qresearch.allocation.problem import Key, Problem, lowest_loss, merge_groups


def allocate(key: Key, problem: Problem, budgets: ArrayLike) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The first allocation within each budget on the hull that the relaxation's prices p span.

        min over allocations of loss + λ Σ_c p_c cost_c,   λ rising from 0 until the budget is met

    The allocations on the way are the corners of the lower convex hull of (p·cost, loss): for one constraint all that
    a Lagrangian sweep can ever find, whatever its steps in λ. ``info["bound"]``: for every budget the value of the
    dual, which no allocation within it is below; ``info["gap"]`` how far above it the answer is. The key is not used.
    Shoham and Gersho, Efficient Bit Allocation for an Arbitrary Set of Quantizers, 1988,
    https://doi.org/10.1109/29.90373. Where we differ: any number of constraints, whose prices are the dual solution of
    the linear relaxation; where no corner meets them together a cheap allocation stands in.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    merged, index = _in_order(*merge_groups(problem))
    prices = [relaxed_prices(merged.loss, merged.costs, limit) for limit in limits]
    found = best_affordable(merged, np.stack([_first(merged, p, limit) for p, limit in zip(prices, limits)]), limits)
    bound = np.array([_dual(merged, p, limit) for p, limit in zip(prices, limits)])
    info = {
        "bound": bound.tolist(),
        "gap": np.maximum(merged.total_loss(found) - bound, 0.0).tolist(),
        "seconds": time.perf_counter() - start,
    }
    return found[:, index], info


def _in_order(problem: Problem, index: Int[np.ndarray, "layer"]) -> tuple[Problem, Int[np.ndarray, "layer"]]:
    """The layers by what they lose and cost: of several dual solutions the solver's depends on their order."""
    tables = np.concatenate([problem.costs, problem.loss[None]])
    order = np.lexsort(tables.transpose(0, 2, 1).reshape(-1, len(problem.loss)))
    names = tuple(problem.layer_names[layer] for layer in order)
    sorted_ = Problem(problem.loss[order], problem.costs[:, order], layer_names=names)
    return sorted_, np.argsort(order)[index]


def _first(
    problem: Problem, prices: Float[np.ndarray, "constraint"], limit: Num[np.ndarray, "constraint"]
) -> Int[np.ndarray, "layer"]:
    best = lowest_loss(problem)
    if np.all(problem.total_cost(best) <= limit):
        return best
    path = descend_hull(problem, np.tensordot(prices, problem.costs.astype(np.float64), axes=1))
    met = np.all(path.cost <= limit, axis=1)
    if met.any():
        return path.after(int(met.argmax()))
    cheap = affordable(problem, limit)
    assert cheap is not None, "check_budgets lets no such budget through"
    return cheap


def _dual(problem: Problem, prices: Float[np.ndarray, "constraint"], limit: Num[np.ndarray, "constraint"]) -> float:
    """The minimum of loss + p·(cost - limit) over all allocations: a lower bound for any p >= 0."""
    values = problem.loss + np.tensordot(prices, problem.costs.astype(np.float64), axes=1)
    return float(values.min(axis=1).sum() - prices @ limit)
