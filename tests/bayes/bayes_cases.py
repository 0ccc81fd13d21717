"""Small problems with every allocation listed, and truths with interactions for the closed loop."""

from __future__ import annotations

import itertools

import numpy as np

from qresearch.allocation import Problem


def problem_of(seed: int, layers: int = 6, options: int = 3, constraints: int = 1, groups=()) -> Problem:
    random = np.random.default_rng(seed)
    loss = random.lognormal(size=(layers, 1)) * 4.0 ** -np.arange(options) * random.lognormal(0, 0.5, (layers, options))
    costs = random.integers(1, 2000, (constraints, layers, 1)) * np.array([2, 4, 8, 16])[:options]
    return Problem(loss, costs, groups)


def every(problem: Problem) -> np.ndarray:
    menus = [np.flatnonzero(allowed) for allowed in problem.allowed]
    found = np.array(list(itertools.product(*menus)))
    for group in problem.groups:
        found = found[(found[:, list(group)] == found[:, group[:1]]).all(axis=1)]
    return found


def middle_budget(problem: Problem, share: float = 0.4) -> np.ndarray:
    low, high = problem.costs.min(axis=2).sum(axis=1), problem.costs.max(axis=2).sum(axis=1)
    return np.floor(low + share * (high - low)).astype(np.int64)


def gibbs_by_enumeration(problem: Problem, limit: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """(allocations within the limit, their probabilities)."""
    allocations = every(problem)
    allocations = allocations[np.all(problem.total_cost(allocations) <= limit, axis=1)]
    weight = -problem.total_loss(allocations) / temperature
    weight = np.exp(weight - weight.max())
    return allocations, weight / weight.sum()


def marginals_of(allocations: np.ndarray, weights: np.ndarray, options: int) -> np.ndarray:
    return np.stack([weights @ (allocations == option) for option in range(options)], axis=-1)
