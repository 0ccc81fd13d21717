from __future__ import annotations

import re

import numpy as np
import pytest
from allocation_cases import CASES, all_allocations, is_within

from qresearch.allocation import Problem, check_budgets
from qresearch.allocation.budgets import affordable
from qresearch.errors import BudgetError


@pytest.mark.parametrize("kind", ["integer", "opposed", "three_constraints", "float_costs"])
def test_affordable_equals_brute_force(kind):
    """Budgets are drawn between the cheapest and the dearest of each constraint, so some are impossible jointly."""
    possible = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        problem = CASES[kind](random)
        every = all_allocations(problem)
        costs = problem.total_cost(every)
        low, high = costs.min(axis=0), costs.max(axis=0)
        for fraction in random.random((4, len(low))):
            budget = low + (high - low) * fraction
            budget = np.round(budget).astype(int) if costs.dtype.kind == "i" else budget
            found = affordable(problem, budget)
            possible.append(is_within(problem, every, budget).any())
            assert (found is not None) == possible[-1]
            assert found is None or is_within(problem, found, budget)
    assert any(possible)
    assert kind != "opposed" or not all(possible)


def test_a_jointly_possible_suggestion_is_possible():
    refused = 0
    for seed in range(20):
        problem = CASES["opposed"](np.random.default_rng(seed))
        costs = problem.total_cost(all_allocations(problem))
        budget = np.floor((3 * costs.min(axis=0) + costs.max(axis=0)) / 4)
        try:
            check_budgets(problem, budget[None])
        except BudgetError as error:
            refused += 1
            budget[0] = float(re.search(r"constraint 0 at least (\d+)", str(error)).group(1))
            check_budgets(problem, budget[None])
            with pytest.raises(BudgetError, match="not by one allocation"):
                check_budgets(problem, budget[None] - [[1, 0]])
    assert refused > 3


def test_integer_budgets_are_exact():
    problem = Problem([[0.0]], [[[2**52 - 1]]])
    assert check_budgets(problem, [2**52 - 1]).tolist() == [[2**52 - 1]]
    for budget in (2**52 - 2, float(2**52 - 2)):
        with pytest.raises(BudgetError, match=str(2**52 - 1)):
            check_budgets(problem, [budget])


def test_float_budgets_for_integer_costs_round_down_but_not_the_callers_arithmetic():
    problem = Problem([[1.0, 0.0]], [[[434, 435]]])
    assert check_budgets(problem, [4.35 * 100, 434.999]).tolist() == [[435], [434]]
    assert check_budgets(problem, np.array([435, 2**63], np.uint64)[:1]).tolist() == [[435]]


def test_float_costs_have_a_relative_tolerance():
    problem = Problem([[0.0]] * 3, [[[0.1], [0.2], [0.3]]])
    for budget in (0.6, 0.6 * (1 - 1e-12)):
        check_budgets(problem, [budget])
    with pytest.raises(BudgetError, match=r"below 0\.6"):
        check_budgets(problem, [0.6 * (1 - 1e-6)])


def test_the_first_constraint_that_cannot_be_met_is_named():
    problem = Problem([[0.0]], [[[3]], [[5]]], constraint_names=("size", "bops"))
    for budget, message in (([3, 4], "bops: budget 4 is below 5"), ([2, 4], "size: budget 2 is below 3")):
        with pytest.raises(BudgetError, match=message):
            check_budgets(problem, [[3, 5], budget])


def test_tied_layers_raise_the_cheapest_cost():
    """Alone each layer could be cheap; tied, one option must serve both."""
    problem = Problem(np.zeros((2, 2)), [[[1, 9], [9, 1]]], groups=((0, 1),))
    with pytest.raises(BudgetError, match="at least 10"):
        check_budgets(problem, [5])
