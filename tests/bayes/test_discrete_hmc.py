"""The exact Gibbs posterior against a sampler that shares nothing with it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from bayes_cases import gibbs_by_enumeration, marginals_of, middle_budget, problem_of

from qresearch.allocation.bayes.discrete_hmc import discrete_hmc_gibbs
from qresearch.allocation.bayes.forward_backward import forward_filter, marginals
from qresearch.errors import BudgetError


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_discrete_hmc_agrees_within_three_percent(seed):
    """10 layers of 3 options: 3^10 < 2^16 allocations."""
    problem, temperature = problem_of(seed, layers=10), 0.3
    limit = middle_budget(problem)
    found = discrete_hmc_gibbs(jax.random.key(seed), problem, limit, temperature, draws=8000)
    assert len(found) > 8000  # of 16,000, the others were above the limit
    assert np.all(problem.total_cost(found) <= limit)
    shares = np.stack([(found == option).mean(axis=0) for option in range(3)], axis=-1)
    exact = marginals(forward_filter(problem, limit, temperature), 3)
    assert np.abs(shares - exact).max() < 0.03
    np.testing.assert_allclose(exact, marginals_of(*gibbs_by_enumeration(problem, limit, temperature), 3), atol=1e-9)


def test_an_impossible_budget_is_refused():
    with pytest.raises(BudgetError, match="no allocation meets the budget"):
        discrete_hmc_gibbs(jax.random.key(0), problem_of(0), np.array([0]), 1.0)
