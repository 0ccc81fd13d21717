"""Learned step sizes as importance, on a trained network."""

from __future__ import annotations

import numpy as np
import pytest
from digits_network import cnn_arguments
from sensitivity_cases import subject_of, two_layers
from small_sweep import compilations

from qresearch.calibration import calibrate
from qresearch.errors import ConfigError
from qresearch.sensitivities import sensitivity
from qresearch.sensitivities.limpq import lsq_twin

BRIEF = {"steps": 25, "batch": 32}


def learned(args, **options):
    return sensitivity(*args, chunk=1, method="limpq", **BRIEF | options)


@pytest.fixture(scope="module")
def digits_cnn():
    return cnn_arguments()


@pytest.fixture(scope="module")
def table(digits_cnn):
    return learned(digits_cnn)


def test_importance_falls_as_the_width_grows(table):
    assert np.all(np.diff(table.loss, axis=1) < 0)
    assert np.all(table.loss > 0)


def test_steps_moved_from_where_they_started(digits_cnn, table):
    start = learned(digits_cnn, steps=1, learning_rate=1e-9)
    moved = np.abs(table.loss / start.loss - 1)
    assert np.median(moved) > 0.02
    assert moved.max() < 1  # 25 steps of at most 2 % of the start each


@pytest.mark.slow
def test_the_start_is_the_calibrated_step_of_lsq(digits_cnn):
    model, params, _, batches, _, prepare = digits_cnn
    found = learned(digits_cnn, steps=1, learning_rate=1e-9, weight_factor=1.0, batch=64)
    x = prepare(batches.inputs[0])
    twin = lsq_twin(model, params, x)
    menu = calibrate(twin, params, x)
    for row, unit in enumerate(twin.units):
        sites = menu.qparams[unit.layer.name]
        wanted = np.ravel(sites["weight"].scale) + np.ravel(sites["input"].scale)
        np.testing.assert_allclose(found.loss[row], wanted, rtol=1e-5)


@pytest.mark.slow
def test_equal_seeds_give_equal_tables_and_others_do_not(digits_cnn, table):
    np.testing.assert_array_equal(learned(digits_cnn).loss, table.loss)
    assert np.all(learned(digits_cnn, seed=1).loss != table.loss)


def test_all_widths_and_allocations_are_one_program(digits_cnn):
    learned(digits_cnn, steps=1)  # what other programs compile once: calibration, the float model's loss
    with compilations() as compiled:
        learned(digits_cnn)
    assert compiled.count("jit(step)") == 1


@pytest.mark.slow
def test_the_factor_weighs_kernels(digits_cnn, table):
    """s_input + α s_weight is linear in α; the training does not know it."""
    none, twice = learned(digits_cnn, weight_factor=0.0), learned(digits_cnn, weight_factor=4.0)
    np.testing.assert_allclose(table.loss - none.loss, twice.loss - table.loss, rtol=1e-9)


def test_a_loss_that_is_lost_is_one_line_that_says_what_to_do(digits_cnn):
    with pytest.raises(
        ConfigError, match=r"limpq's loss became \w+ at step \d+; lower its options learning_rate and"
    ) as told:
        learned(digits_cnn, learning_rate=1e38)
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_widths_of_float_and_of_nothing():
    """An operand at 32 bits costs nothing; a pruned kernel costs more than any width of it."""
    _, params, _, _, _, _ = two_layers()
    x = np.random.default_rng(1).normal(size=(48, 5)).astype(np.float32)
    y = np.random.default_rng(2).normal(size=(48, 3)).astype(np.float32)
    fn = two_layers()[0].fn
    found = learned(subject_of(fn, params, x, y, ((0, 8), (2, 8), (8, 8), (32, 8), (32, 32))), steps=3)
    order = [found.options.index(option) for option in ((0, 8), (2, 8), (8, 8), (32, 8), (32, 32))]
    assert np.isfinite(found.loss).all()
    assert np.all(np.diff(found.loss[:, order], axis=1) < 0)
    np.testing.assert_array_equal(found.loss[:, order[-1]], 0)
