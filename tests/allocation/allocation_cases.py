"""Random allocation problems of every kind, and brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from qresearch.allocation import Problem


def integer(random: np.random.Generator, layers: int = 6, options: int = 3, constraints: int = 1) -> Problem:
    """Losses fall and costs rise with the option, as in sensitivity tables, with noise that breaks both rules."""
    trend = np.arange(options)
    loss = random.lognormal(size=(layers, 1)) * 4.0**-trend * random.lognormal(sigma=0.5, size=(layers, options))
    cost = random.integers(1, 2000, (constraints, layers, 1)) * (1 + trend) + random.integers(
        0, 300, (constraints, layers, options)
    )
    return Problem(loss, cost)


def two_constraints(random: np.random.Generator, layers: int = 6) -> Problem:
    return integer(random, layers=layers, constraints=2)


def three_constraints(random: np.random.Generator, layers: int = 5) -> Problem:
    return integer(random, layers=layers, constraints=3)


def opposed(random: np.random.Generator, layers: int = 6) -> Problem:
    """What is cheap in one constraint is dear in the other, so that budgets may be impossible jointly alone."""
    problem = integer(random, layers=layers)
    return Problem(random.random(problem.loss.shape), np.concatenate([problem.costs, problem.costs[:, :, ::-1]]))


def float_costs(random: np.random.Generator, layers: int = 6) -> Problem:
    problem = integer(random, layers=layers)
    return Problem(problem.loss, problem.costs * 0.1 * random.random(problem.costs.shape))


def equal_float_costs(random: np.random.Generator, layers: int = 6) -> Problem:
    """Sums of 0.1 and 0.3 in different orders differ in the last bit."""
    return Problem(integer(random, layers=layers).loss, np.tile([0.1, 0.2, 0.3], (1, layers, 1)))


def forbidden_options(random: np.random.Generator, layers: int = 6) -> Problem:
    problem = integer(random, layers=layers)
    loss = np.where(random.random(problem.loss.shape) < 0.3, np.inf, problem.loss)
    keep = random.integers(0, loss.shape[1], layers)
    loss[np.arange(layers), keep] = problem.loss[np.arange(layers), keep]
    return Problem(loss, problem.costs)


def grouped(random: np.random.Generator, layers: int = 6) -> Problem:
    problem = two_constraints(random, layers)
    loss = problem.loss.copy()
    loss[4, 0] = np.inf
    return Problem(loss, problem.costs, groups=((1, 4), (5, 0, 2)))


def ties(random: np.random.Generator, layers: int = 6) -> Problem:
    """Small integer losses and costs, zeros among them: many optima."""
    return Problem(random.integers(0, 3, (layers, 3)), random.integers(0, 4, (1, layers, 3)))


def negative_losses(random: np.random.Generator, layers: int = 6) -> Problem:
    """First-order sensitivities can be negative."""
    problem = integer(random, layers=layers)
    return Problem(random.normal(size=problem.loss.shape), problem.costs)


def huge_loss(random: np.random.Generator, layers: int = 6) -> Problem:
    """A layer that diverges under its cheapest option."""
    problem = integer(random, layers=layers)
    loss = problem.loss.copy()
    loss[random.integers(layers), 0] = 1e12
    return Problem(loss, problem.costs)


def bops_like(random: np.random.Generator, layers: int = 6) -> Problem:
    macs = np.round(np.exp(random.uniform(9, 20, layers))).astype(np.int64)
    return Problem(integer(random, layers=layers).loss, (macs[:, None] * np.array([4, 16, 64]))[None])


CASES: dict[str, Callable[..., Problem]] = {
    "integer": integer,
    "two_constraints": two_constraints,
    "three_constraints": three_constraints,
    "opposed": opposed,
    "float_costs": float_costs,
    "equal_float_costs": equal_float_costs,
    "forbidden_options": forbidden_options,
    "grouped": grouped,
    "ties": ties,
    "negative_losses": negative_losses,
    "huge_loss": huge_loss,
    "bops_like": bops_like,
}


def all_allocations(problem: Problem) -> np.ndarray:
    """Every allocation that takes allowed options only and ties the groups, [allocation, layer]."""
    menus = [np.flatnonzero(allowed) for allowed in np.isfinite(problem.loss)]
    every = np.array(list(itertools.product(*menus)))
    for group in problem.groups:
        every = every[(every[:, list(group)] == every[:, group[:1]]).all(axis=1)]
    return every


def is_within(problem: Problem, allocations: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Costs at most the budget, summed here; float costs up to 1e-9 of it."""
    layers = np.arange(problem.loss.shape[0])
    cost = np.stack([table[layers, allocations].sum(axis=-1) for table in problem.costs], axis=-1)
    tolerance = 1e-9 if cost.dtype.kind == "f" else 0.0
    return np.all(cost <= budget * (1 + tolerance), axis=-1)


def brute_force(problem: Problem, budget: np.ndarray) -> tuple[float, np.ndarray]:
    """(least loss, its allocation); (inf, ...) where nothing is within the budget."""
    every = all_allocations(problem)
    loss = problem.loss[np.arange(problem.loss.shape[0]), every].sum(axis=1)
    loss = np.where(is_within(problem, every, budget), loss, np.inf)
    return float(loss.min()), every[loss.argmin()]


def budgets_of(problem: Problem, count: int = 6) -> np.ndarray:
    """Budgets [count, constraint] that can be met, componentwise increasing, from costs of random allocations."""
    every = all_allocations(problem)
    random = np.random.default_rng(len(every))
    costs = problem.total_cost(every[random.integers(0, len(every), count)])
    return np.maximum.accumulate(costs[np.argsort(costs[:, 0])], axis=0)
