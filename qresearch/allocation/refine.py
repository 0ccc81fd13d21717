"""Refinement: local swaps on the measured loss, from any allocator's answer."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from qresearch.allocation.problem import Problem, merge_groups
from qresearch.errors import ConfigError


def refine(
    problem: Problem,
    allocation: Int[np.ndarray, "layer"],
    limit: Num[np.ndarray, "constraint"],
    rounds: int = 4,
    candidates: int = 16,
) -> tuple[Int[np.ndarray, "layer"], dict[str, Any]]:
    """The allocation after up to ``rounds`` best swaps, each of ``candidates`` neighbours measured together.

    A neighbour differs in the option of one layer, or of two (one gives what the other takes), and is within the limit
    (see ``check_budgets``). Those are measured that the table expects the least loss of. It ends where none is measured
    to be better; the answer is never worse than the start, on the examples that ``problem.measure`` uses. info:
    evaluations, and the measured loss before and after.
    """
    if problem.measure is None:
        raise ConfigError("refinement needs a problem that can measure losses (Problem.measure)")
    merged, index = merge_groups(problem)
    _, leaders = np.unique(index, return_index=True)
    now = np.asarray(allocation)[leaders]
    (loss,) = problem.measure(now[index][None])
    info = {"loss_before": float(loss), "evaluations": 1}
    known = {now.tobytes()}
    for _ in range(rounds):
        near = [row for row in _neighbours(merged, now, limit) if row.tobytes() not in known][:candidates]
        if not near:
            break
        known.update(row.tobytes() for row in near)
        found = problem.measure(np.stack(near)[:, index])
        info["evaluations"] += len(near)
        if found.min() >= loss:
            break
        now, loss = near[int(found.argmin())], found.min()
    return now[index], {**info, "loss_after": float(loss)}


def _neighbours(
    problem: Problem, now: Int[np.ndarray, "layer"], limit: Num[np.ndarray, "constraint"]
) -> list[Int[np.ndarray, "layer"]]:
    """Allocations that differ in one or two layers and are within the limit, by the loss that the table expects."""
    single = [(layer, option) for layer, option in np.argwhere(problem.allowed) if option != now[layer]]
    changes = [(change,) for change in single] + [
        pair for pair in itertools.combinations(single, 2) if pair[0][0] != pair[1][0]
    ]
    if not changes:
        return []
    rows = np.tile(now, (len(changes), 1))
    for row, change in zip(rows, changes):
        for layer, option in change:
            row[layer] = option
    rows = rows[np.all(problem.total_cost(rows) <= limit, axis=1)]
    return list(rows[np.argsort(problem.total_loss(rows), kind="stable")])
