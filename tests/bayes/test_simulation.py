"""The measures of calibration, on predictions whose calibration is known."""

from __future__ import annotations

import numpy as np
import pytest

from qresearch.allocation.bayes.simulation import (
    Design,
    expected_calibration_error,
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
