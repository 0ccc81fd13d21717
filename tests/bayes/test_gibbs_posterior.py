"""The Gibbs posterior against enumeration; its temperature; its allocator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bayes_cases import every, gibbs_by_enumeration, marginals_of, middle_budget, problem_of

from qresearch.allocation import Problem, exact, gibbs
from qresearch.allocation.bayes.forward_backward import backward_sample, forward_filter, marginals, temperature_of
from qresearch.errors import BudgetError, ConfigError

CASES = {
    "6 layers": lambda: problem_of(0),
    "two constraints": lambda: problem_of(1, constraints=2),
    "4 options": lambda: problem_of(2, layers=8, options=4),  # 2^16 allocations
    "forbidden": lambda: Problem(np.where(np.eye(6, 3) > 0, np.inf, problem_of(3).loss), problem_of(3).costs),
    "float costs": lambda: Problem(problem_of(4).loss, problem_of(4).costs * 0.1),
    "negative losses": lambda: Problem(-problem_of(5).loss, problem_of(5).costs),
    "bit operations": lambda: Problem(problem_of(6).loss, problem_of(6).costs * 12345678901),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_marginals_and_partition_equal_enumeration(name, temperature):
    problem = CASES[name]()
    limit = middle_budget(problem)
    allocations, weights = gibbs_by_enumeration(problem, limit, temperature)
    chain = forward_filter(problem, limit, temperature)
    options = problem.loss.shape[1]
    np.testing.assert_allclose(marginals(chain, options), marginals_of(allocations, weights, options), atol=1e-9)
    reference = np.logaddexp.reduce(-problem.total_loss(allocations) / temperature)
    assert chain.log_partition == pytest.approx(reference, rel=1e-9)


@pytest.mark.parametrize("max_states", [2**15, 64, 12])
@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_probabilities_of_enumeration(name, max_states):
    """Joint probabilities, not only marginals; with rounded costs too, where what is over the budget is rejected."""
    problem, temperature, count = CASES[name](), 0.3, 20_000
    limit = middle_budget(problem)
    chain = forward_filter(problem, limit, temperature, max_states ** len(limit))
    assert chain.exact or max_states < 2**15
    assert not (chain.exact and max_states == 12)
    drawn = backward_sample(np.random.default_rng(0), chain, problem, limit, count)
    allocations, weights = gibbs_by_enumeration(problem, limit, temperature)
    assert np.all(problem.total_cost(drawn) <= limit)
    options = problem.loss.shape[1]
    shares = marginals_of(drawn, np.full(count, 1 / count), options)
    wanted = marginals_of(allocations, weights, options)
    assert np.abs((shares - wanted) / np.sqrt(wanted * (1 - wanted) / count + 1e-12)).max() < 4.5
    likely = weights.argsort()[-20:]
    found = (drawn[:, None] == allocations[likely]).all(axis=2).mean(axis=0)
    assert np.abs((found - weights[likely]) / np.sqrt(weights[likely] / count)).max() < 4.5


def test_a_low_temperature_is_the_exact_allocator_and_a_high_one_uniform():
    problem = problem_of(7)
    limit = middle_budget(problem)
    best = exact.allocate(0, problem, limit)[0][0]
    cold = marginals(forward_filter(problem, limit, 1e-9), 3)
    np.testing.assert_array_equal(cold[np.arange(6), best], 1.0)
    within = every(problem)[np.all(problem.total_cost(every(problem)) <= limit, axis=1)]
    hot = marginals(forward_filter(problem, limit, 1e12), 3)
    np.testing.assert_allclose(hot, marginals_of(within, np.full(len(within), 1 / len(within)), 3), atol=1e-9)


def test_many_layers_are_drawn_exactly_within_the_budget():
    """3^40 allocations with costs up to 10^12: rounded costs, true costs decide. Two halves of the chain's draws agree
    with those of a finer rounding."""
    random = np.random.default_rng(0)
    costs = random.integers(1, 10**10, (1, 40, 1)) * np.array([4, 16, 64])
    problem = Problem(random.lognormal(size=(40, 1)) * 4.0 ** -np.arange(3), costs)
    limit = middle_budget(problem)
    shares = []
    for max_states in (2**9, 2**13):
        chain = forward_filter(problem, limit, 0.2, max_states)
        assert not chain.exact
        drawn = backward_sample(np.random.default_rng(1), chain, problem, limit, 4000)
        assert np.all(problem.total_cost(drawn) <= limit)
        shares.append(marginals_of(drawn, np.full(4000, 1 / 4000), 3))
    assert np.abs(shares[0] - shares[1]).max() < 4.5 * np.sqrt(0.5 / 4000)
    with pytest.raises(ConfigError, match="draw with backward_sample"):
        marginals(chain, 3)


def test_the_temperature_is_the_scale_at_which_the_posterior_says_who_is_best():
    """Planted Gumbel differences: T is found, and the best measured allocation is b as often as the posterior says."""
    random, problem, planted = np.random.default_rng(0), problem_of(8, layers=4), 0.3
    allocations = every(problem)
    predicted = problem.total_loss(allocations)
    noise = -random.gumbel(0, planted, (20_000, len(allocations)))
    assert temperature_of(np.tile(predicted, 50), (predicted + noise[:50]).ravel()) == pytest.approx(planted, rel=0.05)
    best = (predicted + noise).argmin(axis=1)
    weight = np.exp(-predicted / planted)
    found = np.bincount(best, minlength=len(allocations)) / len(noise)
    assert np.abs(found - weight / weight.sum()).max() < 4.5 * np.sqrt(0.25 / len(noise))


def test_the_allocator_measures_what_it_draws():
    asked = []

    def measure(allocations):
        asked.append(allocations)
        return table.total_loss(allocations) + 0.2 * np.sin(allocations @ np.arange(1, 7))

    table = problem_of(9, groups=((0, 3),))
    problem = replace(table, measure=measure)
    budgets = np.array([middle_budget(table, share) for share in (0.2, 0.5)])
    found, info = gibbs.allocate(0, problem, budgets)
    measured = np.concatenate(asked)
    assert info["evaluations"] == len(measured)
    assert 0 < info["temperature"] < 1
    np.testing.assert_allclose(np.sum(info["marginals"], axis=-1), 1.0)
    for allocation, budget, mode in zip(found, budgets, exact.allocate(0, table, budgets)[0]):
        assert np.all(table.total_cost(allocation) <= budget)
        assert allocation[0] == allocation[3]
        assert measure(allocation[None])[0] <= measure(mode[None])[0]
    np.testing.assert_array_equal(gibbs.allocate(0, problem, budgets)[0], found)


def test_what_cannot_be_drawn_is_refused():
    problem = problem_of(0)
    for temperature in (0.0, -1.0, np.nan):
        with pytest.raises(ConfigError, match="temperature of a Gibbs posterior must be a number > 0"):
            forward_filter(problem, middle_budget(problem), temperature)
    with pytest.raises(BudgetError, match="no allocation meets the budget"):
        forward_filter(problem, np.array([0]), 1.0)
    with pytest.raises(ConfigError, match="measure more joint allocations"):
        temperature_of(np.zeros(2), np.zeros(2))
    with pytest.raises(ConfigError, match="measured losses are NaN"):
        gibbs.allocate(0, replace(problem, measure=lambda b: np.full(len(b), np.nan)), middle_budget(problem))
