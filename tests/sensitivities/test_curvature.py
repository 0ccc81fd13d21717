"""HAWQ-V2's traces on a trained network: how well they are known, and what the two curvatures share."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from digits_network import cnn_arguments

from qresearch.sensitivities import sensitivity
from qresearch.sensitivities.hawq_v2 import CURVATURES


@functools.cache
def table_of(curvature):
    return sensitivity(*cnn_arguments(), method="hawq_v2", curvature=curvature)


@pytest.mark.parametrize("curvature", ["gauss_newton", pytest.param("hessian", marks=pytest.mark.slow)])
def test_the_standard_error_is_below_the_trace(curvature):
    """Signs in all kernels and inputs at once left errors as large as the traces."""
    table = table_of(curvature)
    assert np.mean(table.standard_error < 0.6 * table.loss) > 0.8


def test_gauss_newton_is_never_negative():
    assert np.all(table_of("gauss_newton").loss > 0)


@pytest.mark.slow
def test_a_relu_network_has_one_curvature_within_the_standard_errors():
    """One layer's kernel or input alone: between kinks the outputs are linear in it."""
    one, other = map(table_of, CURVATURES)
    apart = np.abs(one.loss - other.loss) / np.hypot(one.standard_error, other.standard_error)
    assert np.mean(apart < 2) > 0.8
    assert np.max(apart) < 4


@pytest.mark.slow
def test_another_seed_is_another_sample_of_the_same():
    one, other = table_of("gauss_newton"), sensitivity(*cnn_arguments(), method="hawq_v2", seed=1)
    assert np.all(one.loss != other.loss)
    # Both have the same examples: only their signs differ, which is less than what the standard errors hold.
    assert np.all(np.abs(one.loss - other.loss) < 3 * one.standard_error)
