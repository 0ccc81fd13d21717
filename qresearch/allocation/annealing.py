"""Simulated annealing: random changes of one or two layers, worse ones accepted less and less often."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import Limits, affordable, best_affordable, check_budgets
from qresearch.allocation.problem import Key, Problem, generator, lowest_loss, merge_groups

COLDEST = 1e-4  # the last temperature over the first one


def allocate(
    key: Key, problem: Problem, budgets: ArrayLike, sweeps: int = 150, chains: int = 32
) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The best allocation that ``chains`` Markov chains visit within each budget, in ``sweeps`` changes per layer.

        P(accept) = min(1, exp(-Δloss / T)),   T = T_0 COLDEST^(step / steps)

    A change gives one layer, or two at once, a random allowed option; one that leaves the budget is not accepted. Every
    chain starts at a cheap allocation; T_0 is the median over layers of how far their losses are apart. The best option
    everywhere is tried too.
    Kirkpatrick, Gelatt and Vecchi, Optimization by Simulated Annealing, 1983, https://doi.org/10.1126/science.220.4598.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    merged, index = merge_groups(problem)
    cheap = [affordable(merged, limit) for limit in limits]
    begin = np.stack([found for found in cheap if found is not None])
    steps = sweeps * len(merged.loss)
    visited = _anneal(generator(key), merged, begin.repeat(chains, axis=0), limits.repeat(chains, axis=0), steps)
    found = best_affordable(merged, np.concatenate([lowest_loss(merged)[None], begin, visited]), limits)
    return found[:, index], {"stochastic": True, "tried": steps * chains, "seconds": time.perf_counter() - start}


def _anneal(
    random: np.random.Generator, problem: Problem, now: Int[np.ndarray, "chain layer"], limits: Limits, steps: int
) -> Int[np.ndarray, "chain layer"]:
    """The best allocation of every chain; limits [chain, constraint]."""
    rows, layers = np.arange(len(now)), len(problem.loss)
    loss_of = np.where(problem.allowed, problem.loss, 0.0)  # of allowed options alone is anything read
    allowed = np.argsort(~problem.allowed, axis=1, kind="stable")  # every layer's allowed options, first
    counts = problem.allowed.sum(axis=1)
    now = now.copy()
    loss, cost = problem.total_loss(now), problem.total_cost(now)
    best, best_loss = now.copy(), loss.copy()
    warm = _typical_difference(problem)
    for step in range(steps):
        pair = random.integers(0, layers, (2, len(now)))
        option = allowed[pair, (random.random(pair.shape) * counts[pair]).astype(int)]
        alone = random.random(len(now)) < 0.5
        option[1] = np.where(alone, now[rows, pair[1]], option[1])
        option[1] = np.where(pair[0] == pair[1], option[0], option[1])
        before = now[rows, pair]
        differ = np.stack([np.ones(len(now), bool), pair[0] != pair[1]])  # the same layer counts once
        change = ((loss_of[pair, option] - loss_of[pair, before]) * differ).sum(axis=0)
        more = ((problem.costs[:, pair, option] - problem.costs[:, pair, before]) * differ).sum(axis=1).T
        temperature = warm * COLDEST ** (step / steps)
        threshold = np.exp(-np.maximum(change, 0.0) / temperature) if temperature > 0 else change <= 0
        accepted = np.all(cost + more <= limits, axis=1) & (random.random(len(now)) < threshold)
        now[rows[accepted], pair[:, accepted]] = option[:, accepted]
        loss, cost = np.where(accepted, loss + change, loss), np.where(accepted[:, None], cost + more, cost)
        better = loss < best_loss
        best[better], best_loss[better] = now[better], loss[better]
    return best


def _typical_difference(problem: Problem) -> Float[np.ndarray, ""]:
    """The median over layers of the spread of their losses: a layer that diverges does not count."""
    low = problem.loss.min(axis=1)
    high = np.where(problem.allowed, problem.loss, -np.inf).max(axis=1)
    return np.median(high - low)
