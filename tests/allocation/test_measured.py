"""Allocators and refinement on a measured loss, whose layers interact."""

from __future__ import annotations

import numpy as np
import pytest
from allocation_cases import CASES, all_allocations, budgets_of, is_within

from qresearch.allocation import Problem, annealing, exact, nsga2, refine
from qresearch.allocation.budgets import check_budgets
from qresearch.errors import ConfigError


class Measured:
    """A problem whose true loss is the table's plus an interaction of neighbouring layers; counts what it is asked."""

    def __init__(self, seed, kind="integer", **size):
        random = np.random.default_rng(seed)
        table = CASES[kind](random, **size)
        layers, options = table.loss.shape
        scale = np.nanmedian(np.where(table.allowed, table.loss, np.nan))
        self.pairs = random.normal(0, scale, (layers - 1, options, options))
        self.asked = []
        self.table = table
        self.problem = Problem(table.loss, table.costs, table.groups, measure=self.measure)

    def loss(self, allocations):
        first = np.arange(self.pairs.shape[0])
        joint = self.pairs[first, allocations[:, :-1], allocations[:, 1:]].sum(axis=1)
        return self.table.total_loss(allocations) + joint

    def measure(self, allocations):
        self.asked.append(allocations)
        return self.loss(allocations)


def best_within(measured, budget):
    every = all_allocations(measured.table)
    return measured.loss(every)[is_within(measured.table, every, budget)].min()


def test_evolution_finds_the_measured_optimum_of_small_problems():
    found, wanted = [], []
    for seed in range(6):
        measured = Measured(seed)
        budgets = budgets_of(measured.table, count=3)
        allocations, info = nsga2.allocate(seed, measured.problem, budgets)
        assert is_within(measured.table, allocations, budgets[:, None][:, 0]).all()
        found += measured.loss(allocations).tolist()
        wanted += [best_within(measured, budget) for budget in budgets]
        asked = np.concatenate(measured.asked)
        assert len(asked) == len(np.unique(asked, axis=0)) == info["evaluations"]  # nothing is measured twice
    exact_answers = sum(np.isclose(found, wanted))
    assert exact_answers >= 14  # of 18
    assert np.all(np.array(found) >= np.array(wanted) - 1e-9)


def test_evolution_asks_for_whole_generations():
    """A population of candidates is what the evaluator runs in one program."""
    measured = Measured(0, layers=8)
    nsga2.allocate(0, measured.problem, budgets_of(measured.table), population=20, generations=5)
    assert len(measured.asked) == 6
    assert max(map(len, measured.asked)) <= 21 + 6


def test_more_generations_do_not_hurt():
    measured = Measured(3, layers=9)
    budgets = budgets_of(measured.table, count=4)
    losses = [measured.loss(nsga2.allocate(1, measured.problem, budgets, generations=g)[0]) for g in (0, 4, 16)]
    assert np.all(losses[1] <= losses[0] + 1e-12)
    assert np.all(losses[2] <= losses[1] + 1e-12)
    assert losses[2].sum() < losses[0].sum()


def test_annealing_is_near_the_optimum():
    """Measured: 5 % above it in the mean, 10 % at worst."""
    ratios = []
    for seed in range(5):
        problem = CASES["integer"](np.random.default_rng(seed), layers=30, options=5)
        low, high = problem.costs.min(axis=2).sum(), problem.costs.max(axis=2).sum()
        budgets = low + (high - low) * np.array([0.2, 0.4, 0.7])
        one, best = (problem.total_loss(m.allocate(0, problem, budgets)[0]) for m in (annealing, exact))
        ratios += (one / best).tolist()
    assert max(ratios) < 1.25
    assert np.mean(ratios) < 1.1


@pytest.mark.parametrize("kind", ["integer", "two_constraints", "grouped", "forbidden_options"])
def test_refinement_is_never_worse_stays_within_and_counts(kind):
    gained = 0
    for seed in range(6):
        measured = Measured(seed, kind)
        problem = measured.problem
        for budget in budgets_of(measured.table, count=2):
            limit = check_budgets(problem, budget[None])[0]
            start = exact.allocate(0, problem, budget[None])[0][0]
            measured.asked.clear()
            found, info = refine(problem, start, limit, rounds=6, candidates=8)
            assert is_within(measured.table, found[None], budget).all()
            assert np.isfinite(problem.total_loss(found))
            assert all(len(set(found[list(group)])) == 1 for group in problem.groups)
            before, after = measured.loss(np.stack([start, found]))
            assert (info["loss_before"], info["loss_after"]) == (before, after)
            assert after <= before
            assert info["evaluations"] == sum(map(len, measured.asked))
            gained += after < before
    assert gained > 0


def test_with_all_neighbours_it_ends_where_no_change_of_two_layers_is_better():
    measured = Measured(0, layers=5)
    budget = budgets_of(measured.table, count=3)[1]
    limit = check_budgets(measured.problem, budget[None])[0]
    start = exact.allocate(0, measured.problem, budget[None])[0][0]
    found, _ = refine(measured.problem, start, limit, rounds=100, candidates=10_000)
    every = all_allocations(measured.table)
    near = every[((every != found).sum(axis=1) <= 2) & is_within(measured.table, every, budget)]
    assert measured.loss(found[None])[0] <= measured.loss(near).min() + 1e-12


def test_refinement_without_a_measure_is_refused():
    problem = CASES["integer"](np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"Problem\.measure"):
        refine(problem, problem.loss.argmin(axis=1), np.array([10**9]))
