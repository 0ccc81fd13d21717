"""What every allocator promises, on problems of every kind."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from allocation_cases import CASES, all_allocations, brute_force, budgets_of, is_within

from qresearch.allocation import ALLOCATORS, Problem
from qresearch.errors import BudgetError, ConfigError

SEEDS = [(0, 1), pytest.param((2, 3), marks=pytest.mark.slow)]


@pytest.fixture(params=ALLOCATORS)
def allocate(request):
    return ALLOCATORS[request.param]


@pytest.fixture(params=SEEDS, ids=str)
def seeds(request):
    return request.param


@pytest.fixture(params=CASES)
def problems(request, seeds):
    return [CASES[request.param](np.random.default_rng(seed)) for seed in seeds]


def best_uniform(problem: Problem) -> float:
    """Of the options that every layer allows, pinned layers (one allowed option) aside."""
    pinned = np.isfinite(problem.loss).sum(axis=1) == 1
    own = np.where(np.isfinite(problem.loss), problem.loss, 0.0).sum(axis=1)
    return min(np.where(pinned, own, problem.loss[:, option]).sum() for option in range(problem.loss.shape[1]))


def best_of_all(problem: Problem) -> float:
    every = all_allocations(problem)
    return problem.total_loss(every).min()


FAMILIES = {"all": best_of_all, "uniform": best_uniform}


def test_within_budget_allowed_tied_and_never_better_than_brute_force(allocate, problems):
    for problem in problems:
        budgets = budgets_of(problem)
        allocations, _ = allocate(0, problem, budgets)
        assert allocations.shape == (len(budgets), len(problem.loss))
        assert np.issubdtype(allocations.dtype, np.integer)
        for allocation, budget in zip(allocations, budgets):
            assert is_within(problem, allocation, budget)
            for group in problem.groups:
                assert len(set(allocation[list(group)])) == 1
            best, _ = brute_force(problem, budget)
            loss = problem.loss[np.arange(len(allocation)), allocation].sum()
            assert np.isfinite(loss)
            assert loss >= best - 1e-12 * abs(best)


def test_loss_does_not_increase_with_the_budget(allocate, problems):
    for problem in problems:
        allocations, _ = allocate(0, problem, budgets_of(problem, count=12))
        loss = problem.total_loss(allocations)
        assert np.all(np.diff(loss) <= 1e-12 * np.abs(loss[:-1]))


def test_the_cheapest_budget_is_met(allocate, problems):
    for problem in problems:
        every = all_allocations(problem)
        for cost in np.unique(problem.total_cost(every), axis=0)[:2]:
            allocations, _ = allocate(0, problem, cost[None])
            assert is_within(problem, allocations[0], cost)


@pytest.mark.parametrize("kind", ["integer", "two_constraints", "float_costs", "grouped", "negative_losses", "ties"])
def test_the_cost_of_the_best_option_everywhere_buys_it(allocate, kind, seeds):
    for seed in seeds:
        problem = CASES[kind](np.random.default_rng(seed))
        every = all_allocations(problem)
        best = every[problem.total_loss(every).argmin()]
        _, info = allocate(0, problem, problem.total_cost(best)[None])
        family = info.get("family", "all")
        # A smaller family is complete only at the greatest budget.
        budget = problem.total_cost(best) if family == "all" else problem.total_cost(every).max(axis=0)
        for given in (budget, budget.astype(float), np.full(budget.shape, np.inf)):
            allocations, _ = allocate(0, problem, given[None])
            loss = problem.total_loss(allocations)[0]
            np.testing.assert_allclose(loss, FAMILIES[family](problem), rtol=1e-12, atol=1e-12)


def test_an_impossible_budget_is_refused_with_the_smallest_possible_one(allocate, problems):
    for problem in problems:
        costs = problem.total_cost(all_allocations(problem))
        smallest = costs[:, 0].min()
        if smallest == 0:
            continue
        low = costs.max(axis=0)
        low[0] = smallest * 0.999 if low.dtype.kind == "f" else smallest - 1
        with pytest.raises(BudgetError, match="constraint 0") as error:
            allocate(0, problem, np.stack([costs.max(axis=0), low]))
        named = re.search(r"give at least (\S+)$", str(error.value))
        assert named is not None
        assert float(named.group(1)) == pytest.approx(smallest, rel=1e-12)
        low[0] = float(named.group(1))
        allocations, _ = allocate(0, problem, low[None])
        assert is_within(problem, allocations[0], low)


def test_budgets_that_are_possible_alone_but_not_jointly_are_refused(allocate):
    problem = Problem(np.zeros((2, 2)), [[[0, 10], [0, 10]], [[10, 0], [10, 0]]], constraint_names=("size", "bops"))
    with pytest.raises(BudgetError, match=r"size 5, bops 5.*not by one allocation.*size at least 20") as error:
        allocate(0, problem, [[20, 20], [5, 5]])
    assert "bops" in str(error.value)
    allocations, _ = allocate(0, problem, [[20, 5], [10, 10]])
    assert allocations.tolist()[0] == [1, 1]
    assert sorted(allocations.tolist()[1]) == [0, 1]


def test_permuting_the_layers_permutes_the_answer(allocate, problems):
    for seed, problem in enumerate(problems):
        order = np.random.default_rng(seed).permutation(len(problem.loss))
        position = np.argsort(order)
        groups = tuple(tuple(int(position[layer]) for layer in group) for group in problem.groups)
        permuted = Problem(problem.loss[order], problem.costs[:, order], groups)
        budgets = budgets_of(problem)
        allocations, info = allocate(0, problem, budgets)
        others, _ = allocate(0, permuted, budgets)
        assert is_within(problem, others[:, position], budgets).all()
        if not info.get("stochastic") and not has_ties(problem):
            np.testing.assert_array_equal(others[:, position], allocations)


def has_ties(problem: Problem) -> bool:
    """Whether two allocations cost or lose the same, where any rule for equals may depend on the order of layers."""
    loss = np.sort(problem.total_loss(all_allocations(problem)))
    return bool(np.any(np.diff(loss) <= 1e-12 * np.abs(loss[1:])))


def test_the_answer_depends_on_the_key_only_where_declared(allocate, problems):
    for problem in problems:
        budgets = budgets_of(problem)
        allocations, info = allocate(0, problem, budgets)
        np.testing.assert_array_equal(allocate(0, problem, budgets)[0], allocations)
        if not info.get("stochastic"):
            np.testing.assert_array_equal(allocate(1, problem, budgets)[0], allocations)


def test_takes_jax_keys(allocate):
    problem = CASES["integer"](np.random.default_rng(0))
    budgets = budgets_of(problem)
    typed, _ = allocate(jax.random.key(3), problem, budgets)
    raw, _ = allocate(jax.random.PRNGKey(3), problem, budgets)
    np.testing.assert_array_equal(typed, raw)


def test_budgets_of_one_constraint_may_be_flat(allocate):
    problem = CASES["integer"](np.random.default_rng(0))
    budgets = budgets_of(problem)
    np.testing.assert_array_equal(allocate(0, problem, budgets[:, 0])[0], allocate(0, problem, budgets)[0])


def test_budgets_of_the_wrong_shape_are_refused(allocate):
    problem = CASES["two_constraints"](np.random.default_rng(0))
    for budgets in ([1e9, 1e9], [[1e9]], [], [["1e9", "1e9"]]):
        with pytest.raises(ConfigError, match=r"\[budget, 2\]"):
            allocate(0, problem, budgets)
    with pytest.raises(BudgetError, match="nan"):
        allocate(0, problem, [[1e9, np.nan]])


def test_info_is_plain(allocate):
    problem = CASES["integer"](np.random.default_rng(0))
    _, info = allocate(0, problem, budgets_of(problem))
    assert info["seconds"] >= 0
    for value in info.values():
        assert isinstance(value, str | float | int | list | dict)


def test_one_layer_and_one_option(allocate):
    problem = Problem([[0.5]], [[[7]]])
    assert allocate(0, problem, [7])[0].tolist() == [[0]]
