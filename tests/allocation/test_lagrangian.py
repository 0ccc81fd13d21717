from __future__ import annotations

import numpy as np
import pytest
from allocation_cases import CASES, brute_force, budgets_of, integer

from qresearch.allocation import exact, greedy, lagrangian


@pytest.mark.parametrize("kind", CASES)
def test_the_dual_is_a_lower_bound_and_the_gap_is_above_it(kind):
    for seed in range(10):
        problem = CASES[kind](np.random.default_rng(seed))
        budgets = budgets_of(problem, count=4)
        found, info = lagrangian.allocate(0, problem, budgets)
        for allocation, budget, bound, gap in zip(found, budgets, info["bound"], info["gap"]):
            best, _ = brute_force(problem, budget)
            slack = 1e-9 * np.where(np.isfinite(problem.loss), np.abs(problem.loss), 0).max()
            assert bound <= best + slack
            assert problem.total_loss(allocation) <= bound + gap + slack


def test_the_gap_closes_as_layers_are_added():
    """At most one layer is between two corners of the hull, whatever their number."""
    relative = []
    for layers in (4, 16, 64, 256):
        problem = integer(np.random.default_rng(0), layers=layers)
        _, info = lagrangian.allocate(0, problem, [int(0.6 * problem.costs.max(axis=2).sum())])
        relative.append(info["gap"][0] / info["bound"][0])
    assert relative[0] > relative[-1]
    assert relative[-1] < 0.02


def test_for_one_constraint_it_is_the_greedy_descent():
    """Whose steps have the least loss per cost saved: the corners of the same hull."""
    for seed in range(10):
        problem = integer(np.random.default_rng(seed), layers=12, options=5)
        budgets = problem.costs.max(axis=2).sum() * np.array([0.3, 0.5, 0.8])
        one, other = (method.allocate(0, problem, budgets)[0] for method in (lagrangian, greedy))
        np.testing.assert_allclose(problem.total_loss(one), problem.total_loss(other))


def test_prices_tell_two_constraints_apart():
    """Greedy adds the violated constraints up; prices know which one matters."""
    better = 0
    for seed in range(20):
        problem = integer(np.random.default_rng(seed), layers=40, options=5, constraints=2)
        low, high = problem.costs.min(axis=2).sum(axis=1), problem.costs.max(axis=2).sum(axis=1)
        budget = (low + (high - low) * np.array([0.3, 0.5]))[None]
        losses = [
            problem.total_loss(method.allocate(0, problem, budget)[0])[0] for method in (lagrangian, greedy, exact)
        ]
        assert losses[2] <= losses[0] <= 1.5 * losses[2]
        better += losses[0] < losses[1]
    assert better >= 10
