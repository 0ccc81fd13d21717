"""The allocator ``bayesian``: measure, learn, suggest, measure, on losses whose layers interact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bayes_cases import every, middle_budget, problem_of

from qresearch.allocation import ALLOCATORS, Problem, bayesian
from qresearch.errors import BudgetError, ConfigError

OPTIONS = {"measurements": 28, "rounds": 2, "warmup": 100, "draws": 50}  # one shape: compiled once


class Interacting:
    """A table that is 30 % off, and a measured loss in which layers interact; counts what it is asked."""

    def __init__(self, seed: int, layers: int = 6, unit: float = 1.0, groups=()):
        random = np.random.default_rng(seed)
        self.true = problem_of(seed, layers, groups=groups)
        table = self.true.loss * random.lognormal(0, 0.3, self.true.loss.shape) * unit
        self.waves = random.normal(size=(5, layers, self.true.loss.shape[1]))
        self.asked: list[np.ndarray] = []
        self.problem = Problem(table, self.true.costs, groups, measure=self.measure)
        self.budgets = np.array([middle_budget(self.true, share) for share in (0.2, 0.4, 0.6)])

    def loss(self, allocations):
        layers = np.arange(allocations.shape[1])
        interaction = np.sin(2 * self.waves[:, layers, allocations].sum(axis=-1)).sum(axis=0) / np.sqrt(2.5)
        return 2 + 1.1 * self.true.total_loss(allocations) * (1 + 0.15 * interaction)

    def measure(self, allocations):
        self.asked.append(allocations)
        return self.loss(allocations)

    def excess(self, allocations):
        """How far above the best measured increase within each budget, relative to it."""
        candidates = every(self.true)
        losses, costs = self.loss(candidates) - 2, self.true.total_cost(candidates)
        best = [losses[(costs <= budget).all(axis=1)].min() for budget in self.budgets]
        return (self.loss(allocations) - 2) / best - 1


@pytest.mark.parametrize(("method", "unit"), [("expected_improvement", 1.0), ("thompson", 1e3)])
@pytest.mark.slow
def test_it_finds_what_the_table_does_not_show(method, unit):
    """In any unit of the table; each allocation is measured once, and no more than asked for."""
    found, tabled = [], []
    for seed in range(3):
        case = Interacting(seed, unit=unit)
        allocations, info = bayesian.allocate(seed, case.problem, case.budgets, **OPTIONS, method=method)
        asked = np.concatenate(case.asked)
        assert len(asked) == len(np.unique(asked, axis=0)) == info["evaluations"] <= OPTIONS["measurements"]
        assert np.all(case.true.total_cost(allocations) <= case.budgets)
        exact, _ = ALLOCATORS["exact"](0, case.problem, case.budgets)
        assert np.all(case.loss(allocations) <= case.loss(exact))  # those are measured first
        found.append(case.excess(allocations))
        tabled.append(case.excess(exact))
    assert np.mean(found) < 0.3 * np.mean(tabled)


def tied_case():
    return Interacting(3, groups=((1, 4),))


@pytest.fixture(scope="module")
def tied():
    """(case, allocations, info) of a run with two tied layers."""
    case = tied_case()
    return case, *bayesian.allocate(0, case.problem, case.budgets, **OPTIONS)


def test_tied_layers_stay_tied_and_info_says_what_is_known(tied):
    case, allocations, info = tied
    np.testing.assert_array_equal(allocations[:, 1], allocations[:, 4])
    assert all(np.all(asked[:, 1] == asked[:, 4]) for asked in case.asked)
    assert np.shape(info["probabilities"]) == (3, 6, 3)
    np.testing.assert_allclose(np.sum(info["probabilities"], axis=-1), 1)
    assert np.all(np.diff(info["loss"], axis=1) > 0)
    assert np.all(np.diff(info["front"], axis=1) > 0)
    np.testing.assert_allclose(info["measured"], case.loss(allocations))
    assert set(info["diagnostics"]) == {"divergent", "r_hat", "samples", "single_p", "joint_p", "trend_p"}
    draws = info["draws"]
    assert draws["posterior"]["gain"].shape == draws["sample_stats"]["diverging"].shape == (2, OPTIONS["draws"])
    assert draws["posterior_predictive"]["joint"].shape == (2, OPTIONS["draws"], len(draws["observed_data"]["joint"]))
    assert len(draws["observed_data"]["joint"]) == info["evaluations"]
    assert np.all(np.array(info["regret"]) >= 0)
    again = tied_case()
    np.testing.assert_array_equal(bayesian.allocate(0, again.problem, again.budgets, **OPTIONS)[0], allocations)


def test_allocations_that_diverge_are_left_out_and_never_chosen():
    case = Interacting(4)
    limit = np.quantile(case.loss(every(case.true)), 0.8)
    measure = case.measure
    object.__setattr__(case.problem, "measure", lambda b: np.where(measure(b) > limit, np.inf, case.loss(b)))
    allocations, _ = bayesian.allocate(0, case.problem, case.budgets[1:], **OPTIONS)
    assert np.all(case.loss(allocations) <= limit)


def test_a_problem_that_cannot_measure_gets_the_exact_answer():
    problem = problem_of(0)
    allocations, info = bayesian.allocate(0, problem, middle_budget(problem))
    np.testing.assert_array_equal(allocations, ALLOCATORS["exact"](0, problem, middle_budget(problem))[0])
    assert info["evaluations"] == 0


def test_a_float_loss_that_is_known_is_no_unknown(tied):
    case, _, free = tied
    known = replace(case.problem, float_loss=2.0)
    _, info = bayesian.allocate(0, known, case.budgets, **OPTIONS)
    draws = info["draws"]
    np.testing.assert_allclose(draws["posterior"]["base"] * draws["constant_data"]["unit"], 2.0, rtol=1e-6)
    assert free["draws"]["posterior"]["base"].std() > 0


def test_what_cannot_be_learned_from_is_refused():
    case = Interacting(0)
    with pytest.raises(ConfigError, match=r"too few measurements: 10 for 3 budget\(s\); give at least 20"):
        bayesian.allocate(0, case.problem, case.budgets, measurements=10)
    with pytest.raises(BudgetError, match="give at least"):
        bayesian.allocate(0, case.problem, [1])
    for value, message in ((np.nan, "measured losses are NaN"), (np.inf, "0 of the first .* losses are finite")):
        broken = Problem(case.problem.loss, case.true.costs, measure=lambda b, v=value: np.full(len(b), v))
        with pytest.raises(ConfigError, match=message):
            bayesian.allocate(0, broken, case.budgets)
