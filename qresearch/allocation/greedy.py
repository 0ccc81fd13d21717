"""Greedy descent: from the best options, always the change that costs the least loss per unit of cost saved."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import affordable, best_affordable, check_budgets
from qresearch.allocation.problem import Key, Problem, lowest_loss, merge_groups


class _Descent(NamedTuple):
    """From ``start`` down: step k sets layer[k] to option[k]; cost[k] holds after k steps."""

    start: Int[np.ndarray, "layer"]
    layer: Int[np.ndarray, "step"]
    option: Int[np.ndarray, "step"]
    cost: Num[np.ndarray, "step+1 constraint"]

    def after(self, steps: int) -> Int[np.ndarray, "layer"]:
        allocation = self.start.copy()
        allocation[self.layer[:steps]] = self.option[:steps]  # a layer's later steps overwrite its earlier ones
        return allocation


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
    descents: dict[tuple[int, ...], _Descent] = {}
    found = [_within(problem, limit, descents) for limit in limits]
    return best_affordable(problem, np.array(found, int).reshape(len(limits), len(problem.loss)), limits)


def _within(
    problem: Problem, limit: Num[np.ndarray, "constraint"], descents: dict[tuple[int, ...], _Descent]
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
            descents[chosen] = _descent(problem, list(chosen))
        descent = descents[chosen]
        met = (descent.cost <= limit)[:, chosen].all(axis=1)
        allocation = descent.after(int(met.argmax()) if met.any() else len(descent.layer))
    return allocation


def _descent(problem: Problem, constraints: list[int]) -> _Descent:
    """The whole path to the cheapest allocation.

    Within a layer the ratios of consecutive changes rise (they follow the lower convex hull of its options), so merging
    the layers' paths by ratio gives the path that takes the least ratio of all layers every time.
    """
    costs = problem.costs[constraints]
    greatest = np.maximum(costs.max(axis=2).sum(axis=1), np.finfo(np.float64).tiny)
    size = (costs / greatest[:, None, None]).sum(axis=0)
    start = now = lowest_loss(problem)
    steps: list[tuple[np.ndarray, ...]] = []  # of (ratio, layer, option before, option after)
    ratio = np.zeros(len(now))
    while True:
        change, option = _cheapest_change(problem.loss, size, now)
        moves = np.flatnonzero(np.isfinite(change))
        if not moves.size:
            break
        ratio = np.maximum(ratio, change)  # rounding must not put a layer's second step before its first
        steps.append((ratio[moves], moves, now[moves], option[moves]))
        now = np.where(np.isfinite(change), option, now)
    if not steps:
        return _Descent(start, start[:0], start[:0], problem.total_cost(start)[None])
    ratios, layer, before, after = (np.concatenate(column) for column in zip(*steps))
    order = np.argsort(ratios, kind="stable")
    saved = (problem.costs[:, layer, before] - problem.costs[:, layer, after])[:, order]
    cost = problem.total_cost(start) - np.concatenate([np.zeros_like(saved[:, :1]), saved.cumsum(axis=1)], axis=1).T
    return _Descent(start, layer[order], after[order], cost)


def _cheapest_change(
    loss: Float[np.ndarray, "layer option"], size: Float[np.ndarray, "layer option"], now: Int[np.ndarray, "layer"]
) -> tuple[Float[np.ndarray, "layer"], Int[np.ndarray, "layer"]]:
    """Per layer the least loss increase per cost saved, and the option that has it: +inf where nothing is cheaper."""
    layers = np.arange(len(now))[:, None]
    saved = size[layers, now[:, None]] - size
    increase = loss - loss[layers, now[:, None]]
    ratio = np.where(saved > 0, increase / np.where(saved > 0, saved, 1.0), np.inf)
    return ratio.min(axis=1), ratio.argmin(axis=1)
