"""The best allocation of every draw: the same as the exact allocator's, whatever the costs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from bayes_cases import every, middle_budget, problem_of

from qresearch.allocation import Problem
from qresearch.allocation.bayes.vectorized import optima, total
from qresearch.allocation.budgets import check_budgets

CASES = {
    "integer": lambda: problem_of(0),
    "two constraints": lambda: problem_of(1, constraints=2),
    "forbidden": lambda: Problem(np.where(np.eye(6, 3) > 0, np.inf, problem_of(3).loss), problem_of(3).costs),
    "float costs": lambda: Problem(problem_of(4).loss, problem_of(4).costs * 0.1),
    "equal float costs": lambda: Problem(problem_of(4).loss, np.tile([0.1, 0.2, 0.3], (1, 6, 1))),
    "bit operations": lambda: Problem(problem_of(6).loss, problem_of(6).costs * 12345678901 + np.arange(3)),
    "free": lambda: Problem(problem_of(6).loss, np.zeros((1, 6, 3), int)),
    "one option": lambda: Problem([[0.5]], [[[7]]]),
}


@pytest.mark.parametrize("max_bins", [2**16, 40])
@pytest.mark.parametrize("name", CASES)
def test_every_draw_and_budget_has_its_optimum(name, max_bins):
    """40 bins round all costs: what the grid cannot decide goes to the exact allocator."""
    problem = CASES[name]()
    random = np.random.default_rng(0)
    shape = (23, *problem.loss.shape)
    loss = np.where(problem.allowed, problem.loss * random.lognormal(0, 0.7, shape) - 0.01, np.inf)
    cheapest = np.where(problem.allowed, problem.costs, np.inf).min(axis=2).sum(axis=1)
    budgets = np.array([cheapest, *(middle_budget(problem, share) for share in (0.3, 0.6, 1.0)), cheapest + np.inf])
    limits = check_budgets(problem, np.maximum(budgets, cheapest))
    found = optima(loss, problem, limits, max_bins)
    assert found.left <= found.loss.size
    np.testing.assert_allclose(total(loss, found.allocations), found.loss)
    allocations = every(problem)
    losses = loss[:, np.arange(shape[1]), allocations].sum(axis=-1)  # [draw, allocation]
    for b, limit in enumerate(limits):
        met = np.all(problem.total_cost(allocations) <= limit, axis=-1)
        assert np.all(problem.total_cost(found.allocations[:, b]) <= limit)
        best = losses[:, met].min(axis=1)
        np.testing.assert_allclose(found.loss[:, b], best, rtol=1e-6, atol=1e-6 * np.abs(losses).max())


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1, 999_983])
def test_a_thousand_draws_and_twenty_budgets_of_twenty_layers_take_seconds(unit):
    random = np.random.default_rng(0)
    elements = np.array([432] + [2304] * 6 + [4608] + [9216] * 5 + [18432] + [36864] * 5 + [640])  # ResNet-20
    costs = elements[:, None] * np.array([2, 4, 8]) * unit + (unit > 1) * random.integers(0, 1000, (20, 3))
    loss = random.lognormal(size=(1000, 20, 1)) * 4.0 ** -np.arange(3) * random.lognormal(0, 0.4, (1000, 20, 3))
    problem = Problem(loss.mean(axis=0), costs[None])
    limits = check_budgets(
        problem, np.linspace(costs.min(axis=1).sum() * 1.02, costs.max(axis=1).sum(), 20).astype(int)
    )
    optima(loss[:2], problem, limits)  # compiles; 1,000 draws compile once more
    start = time.perf_counter()
    found = optima(loss, problem, limits)
    assert time.perf_counter() - start < 60  # measured 1.5 and 5.4 s, see the report of this work
    assert np.all(problem.total_cost(found.allocations) <= limits)
