"""Whether the sensitivity posterior means what it says: 200 truths, and a control whose noise is believed halved."""

from __future__ import annotations

import time

import jax
import numpy as np
import pytest

from qresearch.allocation import Problem
from qresearch.allocation.bayes.decisions import decide
from qresearch.allocation.bayes.model import Prior, simulate
from qresearch.allocation.bayes.posterior import fit_posterior
from qresearch.allocation.bayes.simulation import Calibration, expected_calibration_error, simulate_posteriors

SIMULATIONS = 200
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return simulate_posteriors(SIMULATIONS)


@pytest.fixture(scope="module")
def overconfident() -> Calibration:
    return simulate_posteriors(SIMULATIONS, overconfidence=2.0)


def test_ranks_of_every_parameter_are_uniform(calibration):
    low = {name: p for name, p in calibration.p_values().items() if p <= 0.01}
    assert not low
    assert calibration.divergent < 0.01


def test_bands_of_the_chosen_allocations_loss_cover_what_they_promise(calibration):
    coverage = calibration.coverage()
    assert coverage[0.5] == pytest.approx(0.5, abs=0.08)
    assert coverage[0.9] == pytest.approx(0.9, abs=0.05)


def test_probabilities_of_bits_and_of_being_optimal_are_frequencies(calibration):
    assert calibration.calibration_error() <= 0.03
    assert expected_calibration_error(calibration.optimal.ravel(), calibration.was_optimal.ravel()) <= 0.08


def test_a_posterior_that_believes_half_the_noise_fails(overconfident):
    """The negative control: each of the tests above can fail, and fails for what it is there to find."""
    assert sum(p < 0.01 for p in overconfident.p_values().values()) >= 10
    coverage = overconfident.coverage()
    assert coverage[0.5] < 0.5 - 0.08
    assert coverage[0.9] < 0.9 - 0.05
    assert overconfident.calibration_error() > 0.03


def test_a_resnet20_takes_less_than_three_minutes():
    """20 layers of 3 options, 8 batches, 32 joint losses: compilation, NUTS, 1,000 draws solved for 20 budgets."""
    start = time.perf_counter()
    measured, _ = simulate(jax.random.key(0), np.ones((20, 3), bool), 8, 32, Prior(), (2.0, 1.0))
    posterior = fit_posterior(jax.random.key(1), measured, warn=False)
    elements = np.array([432] + [2304] * 6 + [4608] + [9216] * 5 + [18432] + [36864] * 5 + [640])
    problem = Problem(posterior.sensitivity.mean(axis=0), elements[None, :, None] * np.array([2, 4, 8]))
    budgets = elements.sum() * np.linspace(2.2, 7.8, 20)
    decision = decide(0, posterior, problem, budgets)
    assert time.perf_counter() - start < 180
    assert np.all(np.diff(problem.total_loss(decision.allocations)) <= 1e-12)
