"""The measures of calibration, on predictions whose calibration is known."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from qresearch.allocation.bayes.model import Prior, simulate
from qresearch.allocation.bayes.posterior import fit_posterior
from qresearch.allocation.bayes.simulation import (
    Design,
    expected_calibration_error,
    overconfident,
    reliability,
    simulate_posteriors,
)


def test_reliability_of_right_and_wrong_predictions():
    random = np.random.default_rng(0)
    predicted = random.random(20_000)
    right, wrong = random.random(20_000) < predicted, random.random(20_000) < 0.5 + 0.5 * (predicted - 0.5)
    assert expected_calibration_error(predicted, right) < 0.015
    assert expected_calibration_error(predicted, wrong) == pytest.approx(0.125, abs=0.02)
    rows = reliability(predicted, right)
    assert rows[:, 2].sum() == 20_000
    np.testing.assert_allclose(rows[:, 0], np.arange(10) / 10 + 0.05, atol=0.01)
    empty = reliability(np.array([0.05, 0.95, 1.0]), np.array([False, True, True]))
    assert np.isnan(empty[1:9, 1]).all()
    assert empty[9].tolist() == [0.975, 1.0, 2]


@pytest.mark.slow
def test_few_simulations_give_all_measures_and_the_control_is_narrower():
    """Six layers, three options, three batches and twelve joint losses: the program of the other tests."""
    design = Design(layers=6, batches=3)
    seen: list[int] = []
    found = simulate_posteriors(3, design=design, draws=200, on_done=seen.append)
    control = simulate_posteriors(3, design=design, draws=200, overconfidence=3.0)
    assert seen == [1, 2, 3]
    assert found.predicted.shape == (3, 5, 6, 3)
    np.testing.assert_allclose(found.predicted.sum(axis=-1), 1)
    assert found.observed.sum() == 3 * 5 * 6
    assert all(rank.min() >= 0 and rank.max() <= 99 for rank in found.ranks.values())
    assert set(found.coverage()) == {0.5, 0.9}
    spread = {name: np.abs(ranks - 49.5).mean() for name, ranks in found.ranks.items()}
    wider = {name: np.abs(ranks - 49.5).mean() for name, ranks in control.ranks.items()}
    assert np.mean(list(wider.values())) > np.mean(list(spread.values()))  # truths lie in the tails of what is believed


def test_an_overconfident_posterior_has_the_same_means_and_a_part_of_the_spread():
    measured, _ = simulate(jax.random.key(1), np.ones((6, 3), bool), 3, 12, Prior(), (2.0, 1.0))
    posterior = fit_posterior(jax.random.key(0), measured, warmup=500, draws=200, warn=False)
    half = overconfident(posterior, np.ones((6, 3), bool), 2.0)
    for name in ("log_sensitivity", "base", "layer_context"):
        np.testing.assert_allclose(half.sites[name].mean(axis=(0, 1)), posterior.sites[name].mean(axis=(0, 1)))
        np.testing.assert_allclose(half.sites[name].std(axis=(0, 1)), posterior.sites[name].std(axis=(0, 1)) / 2)
    total = np.ones((len(half.base), 1))
    assert half.spread(total).mean() < 0.6 * posterior.spread(total).mean()
    assert overconfident(posterior, np.ones((6, 3), bool), 1.0) is posterior
