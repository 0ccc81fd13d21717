from __future__ import annotations

import numpy as np

from qresearch.allocation import Problem, uniform

INF = np.inf


def test_takes_the_uniform_allocation_of_least_loss():
    problem = Problem([[4, 1, 0.5], [4, 2, 3]], [[[2, 4, 8], [2, 4, 8]]])
    found, info = uniform.allocate(0, problem, [4, 7, 8, 15, 16])
    assert found.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1]]
    assert info["substitutes"] == 0


def test_a_pinned_layer_keeps_its_option():
    problem = Problem([[INF, INF, 0.1], [4, 2, 1], [3, 2, 1]], [[[2, 4, 8]] * 3])
    found, _ = uniform.allocate(0, problem, [12, 16, 24])
    assert found.tolist() == [[2, 0, 0], [2, 1, 1], [2, 2, 2]]


def test_a_layer_without_the_option_takes_the_nearest_in_cost_from_below_or_its_cheapest():
    problem = Problem([[3, INF, 0, INF], [INF, INF, 2, 1], [4, 3, 2, 1]], [[[2, 4, 6, 8]] * 3])
    assert uniform.uniform_candidates(problem).tolist() == [[0, 2, 0], [0, 2, 1], [2, 2, 2], [2, 3, 3]]


def test_tied_layers_that_allow_different_options_stay_tied():
    problem = Problem([[3, 2, INF], [INF, 2, 1], [3, 2, 1]], [[[2, 4, 8]] * 3], groups=((0, 1),))
    found, _ = uniform.allocate(0, problem, [10, 12, 16])
    assert found.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 2]]


def test_where_no_uniform_allocation_is_affordable_the_cheapest_stands_in():
    problem = Problem([[3, 1], [3, 1]], [[[2, 9], [9, 2]]])
    found, info = uniform.allocate(0, problem, [4, 11])
    assert found[0].tolist() == [0, 1]
    assert info["substitutes"] == 1
