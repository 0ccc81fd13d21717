from __future__ import annotations

import numpy as np
import pytest

from qresearch.evaluation import make_batches
from qresearch.population import evaluate_population
from qresearch.sensitivities import Sensitivity, additivity, allocation_bits, sensitivity


def table_of(seed=0, layers=8, options=4, forbidden=True):
    random = np.random.default_rng(seed)
    loss = random.lognormal(size=(layers, options))
    if forbidden:
        loss[0, 1:] = np.inf
    return Sensitivity(loss, np.zeros_like(loss), tuple((b, b) for b in range(options)), 0.3)


def sums(table, allocations):
    return table.float_loss + table.loss[np.arange(len(table.loss)), allocations].sum(axis=1)


def test_of_losses_that_add_up():
    table = table_of()
    found = additivity(table, lambda rows: sums(table, rows), count=20)
    assert found.predicted.shape == (20,)
    assert np.isfinite(found.predicted).all()  # no forbidden option is drawn
    assert len(set(found.predicted)) > 10
    assert found.rank_correlation == pytest.approx(1)
    assert found.ratio == pytest.approx(1)


def test_layers_that_make_each_other_worse_have_a_ratio_above_one_and_keep_the_order():
    table = table_of()
    found = additivity(table, lambda rows: table.float_loss + 2 * (sums(table, rows) - table.float_loss) ** 2, count=20)
    assert found.rank_correlation == pytest.approx(1)
    assert found.ratio > 2


def test_losses_that_have_nothing_to_do_with_the_sums_have_no_rank_correlation():
    table, random = table_of(), np.random.default_rng(1)
    found = additivity(table, lambda rows: random.random(len(rows)), count=400)
    assert abs(found.rank_correlation) < 0.15


def test_few_allocations_have_no_rank_correlation_to_speak_of():
    table = table_of()
    assert np.isnan(additivity(table, lambda rows: sums(table, rows), count=2).rank_correlation)


def test_on_digits_the_sums_order_joint_allocations(trained_digits):
    t = trained_digits
    args = (make_batches(t.data.validation, 100, 300), t.task, t.data.prepare)
    table = sensitivity(t.quantized, t.variables, t.qparams, *args, chunk=1)

    def measure(rows):
        bits = np.stack([allocation_bits(table, row) for row in rows])
        return evaluate_population(t.quantized, t.variables, t.qparams, bits, *args, chunk=1).loss.mean(axis=1)

    found = additivity(table, measure, count=16)
    assert found.rank_correlation > 0.8  # measured 0.97, and a ratio of 1.12
    assert 0.5 < found.ratio < 2
    loss = found.measured + table.float_loss
    assert np.all(loss > 0)
