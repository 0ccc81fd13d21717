from __future__ import annotations

import numpy as np
import pytest
from allocation_cases import CASES, integer

from qresearch.allocation import Problem, exact, greedy


def step_by_step(problem: Problem, budget: int) -> np.ndarray:
    """The textbook loop: one change at a time, for one constraint."""
    loss, cost = problem.loss, problem.costs[0]
    now = loss.argmin(axis=1)
    layers = np.arange(len(now))
    while cost[layers, now].sum() > budget:
        best = (np.inf, 0, 0)
        for layer in layers:
            for option in np.flatnonzero(cost[layer] < cost[layer, now[layer]]):
                saved = cost[layer, now[layer]] - cost[layer, option]
                best = min(best, ((loss[layer, option] - loss[layer, now[layer]]) / saved, layer, option))
        now[best[1]] = best[2]
    return now


@pytest.mark.parametrize("kind", ["integer", "forbidden_options", "negative_losses", "bops_like"])
def test_equals_the_textbook_loop(kind):
    for seed in range(5):
        problem = CASES[kind](np.random.default_rng(seed), layers=7)
        low = np.where(problem.allowed, problem.costs[0], problem.costs.max()).min(axis=1).sum()
        budgets = low + (problem.costs[0].max(axis=1).sum() - low) * np.arange(9) // 8
        found, _ = greedy.allocate(0, problem, budgets)
        for allocation, budget in zip(found, budgets):
            np.testing.assert_array_equal(allocation, step_by_step(problem, budget))


def test_is_near_the_optimum_on_smooth_tables():
    """Greedy follows the lower convex hull, so it loses at most about one step of one layer: measured 0 to 9 %."""
    for seed in range(5):
        problem = integer(np.random.default_rng(seed), layers=40, options=6)
        budgets = problem.costs.max(axis=2).sum() * np.array([0.3, 0.5, 0.7])
        loss = problem.total_loss(greedy.allocate(0, problem, budgets)[0])
        best = problem.total_loss(exact.allocate(0, problem, budgets)[0])
        assert np.all(loss <= 1.25 * best)


def test_several_constraints_that_pull_apart_are_met():
    """Descending in one constraint violates the other: both count from then on, or a cheap allocation stands in."""
    for seed in range(10):
        problem = CASES["opposed"](np.random.default_rng(seed), layers=8)
        middle = problem.costs[:, np.arange(8), 1].sum(axis=1)
        found, _ = greedy.allocate(0, problem, middle[None])
        assert np.all(problem.total_cost(found) <= middle)


def test_a_larger_budget_shares_the_answers_of_a_smaller_one():
    """With several constraints the path depends on which are violated, and more budget can lead to a worse end."""
    problem = CASES["opposed"](np.random.default_rng(44), layers=8)
    budgets = np.array([[16982, 17923], [17402, 17998]])
    apart = [problem.total_loss(greedy.allocate(0, problem, budget[None])[0])[0] for budget in budgets]
    assert apart[1] > apart[0]
    together = problem.total_loss(greedy.allocate(0, problem, budgets)[0])
    assert together[1] <= together[0]
