from __future__ import annotations

import json
import time

import numpy as np
import pytest
from allocation_cases import CASES, all_allocations, brute_force, budgets_of, integer, is_within
from conftest import shared_path

from qresearch.allocation import Problem, dynamic_program, exact, milp
from qresearch.errors import ConfigError

# Losses within 1e-10 of the greedy allocation's are equal to the solver.
EXACT = {"exact": (exact.allocate, 1e-12), "milp": (milp.allocate, 1e-9)}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(("allocate", "rtol"), EXACT.values(), ids=EXACT)
def test_equals_brute_force(kind, allocate, rtol):
    for seed in range(30 if allocate is exact.allocate else 10):
        problem = CASES[kind](np.random.default_rng(1000 + seed))
        budgets = budgets_of(problem, count=3)
        allocations, _ = allocate(0, problem, budgets)
        for allocation, budget in zip(allocations, budgets):
            best, _ = brute_force(problem, budget)
            assert is_within(problem, allocation, budget)
            np.testing.assert_allclose(problem.total_loss(allocation), best, rtol=rtol, atol=rtol)


def test_equals_brute_force_on_eight_layers():
    for seed in range(6):
        problem = CASES["two_constraints"](np.random.default_rng(seed), layers=8)
        for budget in budgets_of(problem, count=3):
            found = exact.allocate(0, problem, budget[None])[0][0]
            np.testing.assert_allclose(problem.total_loss(found), brute_force(problem, budget)[0], rtol=1e-12)


@pytest.mark.parametrize("constraints", [1, 2])
def test_of_equal_losses_the_cheapest_is_returned(constraints):
    """Cheapest in the first constraint, then in the second."""
    for seed in range(50):
        random = np.random.default_rng(seed)
        one = CASES["ties"](random)
        problem = Problem(one.loss, np.concatenate([one.costs, one.costs[:, :, ::-1]])[:constraints])
        every = all_allocations(problem)
        loss, cost = problem.total_loss(every), problem.total_cost(every)
        for budget in cost[random.integers(0, len(every), 4)]:
            found = exact.allocate(0, problem, budget[None])[0][0]
            within = (cost <= budget).all(axis=1)
            best = loss[within].min()
            assert problem.total_loss(found) == best
            assert problem.total_cost(found).tolist() == min(cost[within & (loss == best)].tolist())


@pytest.mark.parametrize("constraints", [1, 2, 3])
def test_dynamic_and_integer_programming_agree_on_larger_problems(constraints):
    random = np.random.default_rng(constraints)
    problem = integer(random, layers=24, options=6, constraints=constraints)
    low, high = problem.costs.min(axis=2).sum(axis=1), problem.costs.max(axis=2).sum(axis=1)
    budgets = np.stack([low + (high - low) * t // 100 for t in (5, 30, 60)])
    one, other = (problem.total_loss(solve(0, problem, budgets)[0]) for solve, _ in EXACT.values())
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_budgets_below_the_solvers_tolerance_hold():
    """A bit more than the budget, of 4e14, is nothing to the solver: such answers are cut off."""
    random = np.random.default_rng(0)
    problem = Problem(np.tile([1.0, 0.0], (8, 1)), [np.stack([np.zeros(8, int), 10**14 + random.permutation(8)], 1)])
    budget = 4 * 10**14 + 9  # of four layers only those whose last digits sum to 9 or less
    found, info = milp.allocate(0, problem, [budget])
    assert problem.total_cost(found)[0, 0] <= budget
    assert problem.total_loss(found)[0] == 4.0
    assert sum(info["cuts"]) > 0


def test_a_network_of_20_layers_and_25_options_takes_thousands_of_states():
    """Widths 2, 3, 4, 6, 8 for weights and inputs, bops up to 1e11: the aim is 2 s for 10 budgets on two cores."""
    random = np.random.default_rng(0)
    widths = np.array([(w, a) for w in (2, 3, 4, 6, 8) for a in (2, 3, 4, 6, 8)])
    macs = np.round(np.exp(random.uniform(10, 19, 20))).astype(np.int64)
    loss = (random.lognormal(sigma=1.5, size=(20, 1, 2)) * 4.0**-widths).sum(axis=-1)
    problem = Problem(loss * random.lognormal(sigma=0.3, size=loss.shape), [macs[:, None] * widths.prod(axis=1)])
    low, high = problem.costs.min(axis=2).sum(), problem.costs.max(axis=2).sum()
    start = time.perf_counter()
    _, info = exact.allocate(0, problem, low + (high - low) * np.linspace(0.02, 1, 10))
    assert time.perf_counter() - start < 10
    assert max(info["states"]) < 100_000


def test_a_search_that_outgrows_memory_says_so(monkeypatch):
    """Losses that are linear in the costs make every allocation as good as its cost: a subset sum."""
    monkeypatch.setattr(dynamic_program, "MAX_STATES", 1000)
    cost = np.sort(np.random.default_rng(0).integers(1, 10**6, (1, 20, 8)), axis=2)
    problem = Problem(cost.max() - cost[0], cost)
    with pytest.raises(ConfigError, match="more than 1000 partial allocations"):
        exact.allocate(0, problem, [int(cost.mean(axis=2).sum())])


HAWQ_COSTS = {  # "units" of the file: what each constraint charges a layer at 4 and at 8 bits
    "modelsize": lambda inputs: (inputs["parameters"] / 2, inputs["parameters"]),
    "bops": lambda inputs: (inputs["bops"] / 64, inputs["bops"] / 16),
    "latency": lambda inputs: (inputs["latency_int4"], inputs["latency_int8"]),
}


@pytest.mark.parametrize("constraint", HAWQ_COSTS)
@pytest.mark.parametrize("allocate", [exact.allocate, milp.allocate], ids=EXACT)
def test_returns_the_published_bits_of_hawq_v3(constraint, allocate):
    """Yao et al. 2021, ResNet-18. Its first and last layer stay at 8 bits and are no part of the program."""
    data = json.loads(shared_path("data", "hawq_v3_resnet18.json").read_text())
    inputs = {name: np.array(values) for name, values in data["inputs"].items()}
    perturbation = [inputs[f"delta_weights_{bits}bit_square"] for bits in (4, 8)]
    loss = inputs["Hutchinson_trace"][:, None] * np.stack(perturbation, axis=1)
    costs = np.stack(HAWQ_COSTS[constraint](inputs), axis=1)
    problem = Problem(loss, costs[None], groups=tuple(map(tuple, data["tied_layers"])))
    fractions = (0.25, 0.5, 0.75)
    least, greatest = costs.sum(axis=0)
    allocations, _ = allocate(0, problem, [least + t * (greatest - least) for t in fractions])
    bits = np.array([4, 8])[allocations]
    for t, found in zip(fractions, bits):
        assert found.tolist() == data["published_bits"][f"{constraint}_{t}"]
