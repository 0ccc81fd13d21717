"""Problems that hypothesis makes up, of up to 3^8 allocations: exact methods are exact, the others feasible."""

from __future__ import annotations

import numpy as np
import pytest
from allocation_cases import all_allocations, brute_force, is_within
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from qresearch.allocation import ALLOCATORS, Problem
from qresearch.errors import BudgetError

EXACT = ("exact", "milp")


@st.composite
def problems(draw):
    """(problem, budget): a budget is the cost of some allocation, moved a little."""
    layers, options = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    constraints = draw(st.integers(1, 2))
    losses = stn.arrays(np.float64, (layers, options), elements=st.integers(-4, 40).map(lambda v: v / 8))
    costs = stn.arrays(np.int64, (constraints, layers, options), elements=st.integers(0, 30))
    loss, cost = draw(losses), draw(costs)
    forbidden = draw(stn.arrays(np.bool_, (layers, options), elements=st.booleans()))
    forbidden[np.arange(layers), draw(stn.arrays(np.int64, layers, elements=st.integers(0, options - 1)))] = False
    groups = ((0, layers - 1),) if layers > 1 and draw(st.booleans()) else ()
    for group in groups:  # tied layers need an option in common
        forbidden[list(group)] = forbidden[group[0]]
    problem = Problem(np.where(forbidden, np.inf, loss), cost, groups)
    every = all_allocations(problem)
    budget = problem.total_cost(every[draw(st.integers(0, len(every) - 1))])
    return problem, budget + draw(st.sampled_from([-1, 0, 0, 0, 3]))


def check(case):
    problem, budget = case
    best, _ = brute_force(problem, budget)
    for name, allocate in ALLOCATORS.items():
        if not np.isfinite(best):
            with pytest.raises(BudgetError, match="give"):
                allocate(0, problem, budget[None])
            continue
        found = allocate(0, problem, budget[None])[0][0]
        loss = problem.total_loss(found)
        assert is_within(problem, found[None], budget).all(), name
        assert all(len(set(found[list(group)])) == 1 for group in problem.groups), name
        assert loss >= best - 1e-9, name
        if name in EXACT:
            assert loss <= best + 1e-9, name


@given(problems())
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_forty_problems(case):
    check(case)


@pytest.mark.slow
@given(problems())
@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_thousand_problems(case):
    check(case)
