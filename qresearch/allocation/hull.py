"""Paths from the best options to the cheapest ones along the lower convex hull of every layer's (cost, loss) points."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from qresearch.allocation.problem import Problem, lowest_loss


class Descent(NamedTuple):
    """From ``start`` down: step k sets layer[k] to option[k]; cost[k] holds after k steps."""

    start: Int[np.ndarray, "layer"]
    layer: Int[np.ndarray, "step"]
    option: Int[np.ndarray, "step"]
    cost: Num[np.ndarray, "step+1 constraint"]

    def after(self, steps: int) -> Int[np.ndarray, "layer"]:
        """The allocation after so many steps."""
        allocation = self.start.copy()
        allocation[self.layer[:steps]] = self.option[:steps]  # a layer's later steps overwrite its earlier ones
        return allocation


def descend_hull(problem: Problem, size: Float[np.ndarray, "layer option"]) -> Descent:
    """The whole path to the allocation of least size, every step the one of least loss increase per size saved.

    Within a layer the ratios of consecutive changes rise (they follow the lower convex hull of its options), so merging
    the layers' paths by ratio gives the path that takes the least ratio of all layers every time. Every allocation on
    it minimises loss + λ size for some λ. The problem's groups must be merged.
    """
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
        return Descent(start, start[:0], start[:0], problem.total_cost(start)[None])
    ratios, layer, before, after = (np.concatenate(column) for column in zip(*steps))
    order = np.argsort(ratios, kind="stable")
    saved = (problem.costs[:, layer, before] - problem.costs[:, layer, after])[:, order]
    cost = problem.total_cost(start) - np.concatenate([np.zeros_like(saved[:, :1]), saved.cumsum(axis=1)], axis=1).T
    return Descent(start, layer[order], after[order], cost)


def _cheapest_change(
    loss: Float[np.ndarray, "layer option"], size: Float[np.ndarray, "layer option"], now: Int[np.ndarray, "layer"]
) -> tuple[Float[np.ndarray, "layer"], Int[np.ndarray, "layer"]]:
    """Per layer the least loss increase per size saved, and the option that has it: +inf where nothing is smaller."""
    layers = np.arange(len(now))[:, None]
    saved = size[layers, now[:, None]] - size
    increase = loss - loss[layers, now[:, None]]
    ratio = np.where(saved > 0, increase / np.where(saved > 0, saved, 1.0), np.inf)
    return ratio.min(axis=1), ratio.argmin(axis=1)
