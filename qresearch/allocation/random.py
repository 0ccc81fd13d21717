"""Random search: the baseline that shows how much of a result is due to the search."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Int, Num
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import affordable, best_affordable, check_budgets, within
from qresearch.allocation.problem import Key, Problem, draw_options, generator, lowest_loss, merge_groups


def allocate(
    key: Key, problem: Problem, budgets: ArrayLike, samples: int = 64
) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The best of ``samples`` random allocations, each repaired to be within the budget.

    Every layer draws uniformly from its allowed options. A draw over budget sets layers, in a random order, to their
    option in a cheap allocation (the cheapest, for one constraint) until it is within; so every budget that can be met
    is met. All budgets share the draws, and each takes the best of all that were found. The best option everywhere is
    tried too: where it is affordable there is nothing to search. ``info``: ``tried`` counts the draws, ``repaired``
    those that were over each budget.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    merged, index = merge_groups(problem)
    draws, order = _draw(generator(key), merged, samples)
    candidates = [lowest_loss(merged)[None]]
    for limit in limits:
        cheap = affordable(merged, limit)
        assert cheap is not None, "check_budgets lets no such budget through"
        candidates += [_repair(merged, draws, order, cheap, limit), cheap[None]]
    found = best_affordable(merged, np.concatenate(candidates), limits)
    repaired = (~within(merged, draws, limits)).sum(axis=1).tolist()
    info = {
        "stochastic": True,
        "tried": samples,
        "repaired": repaired,
        "seconds": time.perf_counter() - start,
    }
    return found[:, index], info


def _draw(
    random: np.random.Generator, problem: Problem, samples: int
) -> tuple[Int[np.ndarray, "sample layer"], Int[np.ndarray, "sample layer"]]:
    """Random allocations, and for each a random order of the layers."""
    draws = draw_options(random, problem.allowed, samples)
    order = random.permuted(np.tile(np.arange(len(problem.loss)), (samples, 1)), axis=1)
    return draws, order


def _repair(
    problem: Problem,
    draws: Int[np.ndarray, "sample layer"],
    order: Int[np.ndarray, "sample layer"],
    cheap: Int[np.ndarray, "layer"],
    limit: Num[np.ndarray, "constraint"],
) -> Int[np.ndarray, "sample layer"]:
    """The draws, each with the fewest layers in its order set to ``cheap`` that bring it within the limit."""
    layers = np.arange(len(cheap))
    saved = problem.costs[:, layers, draws] - problem.costs[:, layers, cheap][:, None]  # [constraint, sample, layer]
    after = problem.total_cost(draws).T[:, :, None] - np.cumsum(np.take_along_axis(saved, order[None], axis=2), axis=2)
    met = np.all(after <= limit[:, None, None], axis=0)  # [sample, layers moved - 1]
    moved = np.where(met.any(axis=1), met.argmax(axis=1) + 1, len(cheap))
    moved[within(problem, draws, limit[None])[0]] = 0
    rank = np.argsort(order, axis=1)
    return np.where(rank < moved[:, None], cheap, draws)
