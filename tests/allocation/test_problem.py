from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest
from allocation_cases import CASES, all_allocations

from qresearch.allocation import Problem, merge_groups
from qresearch.allocation.problem import generator, lowest_loss
from qresearch.errors import ConfigError

INF = np.inf
LOSS = np.array([[3.0, 1.0], [2.0, 0.5], [1.0, 0.0]])
COSTS = np.array([[[1, 2], [10, 20], [100, 200]], [[5, 6], [7, 8], [9, 10]]])


def test_totals_by_hand():
    problem = Problem(LOSS, COSTS)
    assert problem.total_loss(np.array([1, 0, 1])) == 3.0
    assert problem.total_cost(np.array([1, 0, 1])).tolist() == [212, 23]
    many = np.array([[[0, 0, 0], [1, 1, 1]]])
    assert problem.total_loss(many).tolist() == [[6.0, 1.5]]
    assert problem.total_cost(many).tolist() == [[[111, 21], [222, 24]]]


def test_merged_groups_have_the_same_losses_and_costs():
    for seed in range(5):
        problem = CASES["grouped"](np.random.default_rng(seed))
        merged, index = merge_groups(problem)
        assert merged.groups == ()
        assert merged.loss.shape[0] == 3
        every = all_allocations(merged)
        assert {tuple(row) for row in every[:, index]} == {tuple(row) for row in all_allocations(problem)}
        np.testing.assert_allclose(problem.total_loss(every[:, index]), merged.total_loss(every), rtol=1e-12)
        np.testing.assert_array_equal(problem.total_cost(every[:, index]), merged.total_cost(every))


def test_without_groups_nothing_is_merged():
    merged, index = merge_groups(Problem(LOSS, COSTS))
    np.testing.assert_array_equal(merged.loss, LOSS)
    assert index.tolist() == [0, 1, 2]


def test_lowest_loss_prefers_the_cheaper_of_equals():
    problem = Problem([[1.0, 1.0, 2.0], [np.inf, 3.0, 0.0]], [[[9, 4, 1], [1, 2, 3]]])
    assert lowest_loss(problem).tolist() == [1, 2]


def test_integers_stay_integers_and_the_tables_are_frozen():
    problem = Problem(LOSS.tolist(), COSTS.astype(np.int32))
    assert problem.costs.dtype == np.int64
    assert Problem(LOSS, COSTS.astype(np.float32)).costs.dtype == np.float64
    for table in (problem.loss, problem.costs):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


NAMES = {"layer_names": ("stem", "conv", "head"), "option_names": ("W4A4", "W8A8")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": LOSS[0]}, r"loss\[layer, option\]"),
        ({"costs": COSTS[0]}, r"got shapes \(3, 2\) and \(3, 2\)"),
        ({"costs": COSTS[:, :2]}, "shapes"),
        ({"loss": np.where(LOSS == 0.5, np.nan, LOSS)}, "layer 'conv', option 'W8A8' has a loss that is NaN"),
        ({"loss": np.where(LOSS == 0.5, -np.inf, LOSS)}, "'conv'.*-inf"),
        ({"costs": COSTS - 6}, "layer 'stem', option 'W4A4' has a cost that is negative"),
        ({"costs": np.where(COSTS == 9, np.nan, COSTS)}, "'head'.*not finite"),
        ({"loss": np.where([[False], [True], [False]], INF, LOSS)}, "layer 'conv' has no allowed option"),
        ({"groups": ((0, 3),)}, "group member 3 is no layer: there are layers 0 to 2"),
        ({"groups": ((0, 1), (1, 2))}, "layer 'conv' is in more than one group"),
        ({"groups": ((0, 0),)}, "layer 'stem' is in more than one group"),
        (
            {"loss": [[INF, 1.0], [2.0, INF], [1.0, 0.0]], "groups": ((0, 1),)},
            "tied layers stem, conv have no allowed option in common",
        ),
        ({"costs": COSTS * 10**14}, "larger unit"),
        ({"layer_names": ("stem",)}, "layer_names has 1 entries for 3 layers"),
    ],
)
def test_what_cannot_be_allocated_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Problem(**{"loss": LOSS, "costs": COSTS, **NAMES, **changes})


def test_a_key_is_a_seed():
    draws = {
        name: generator(key).random(4).tolist()
        for name, key in {
            "seed 1": 1,
            "seed 2": np.int64(2),
            "key 1": jax.random.key(1),
            "key 2": jax.random.key(2),
        }.items()
    }
    assert len({tuple(draw) for draw in draws.values()}) == 4
    assert draws["key 1"] == generator(jax.random.PRNGKey(1)).random(4).tolist()


def test_listing_the_allocators_imports_neither_jax_nor_scipy():
    """The command line lists them in its help, and must not pay seconds for it."""
    code = "import sys, qresearch.allocation; sys.exit('jax' in sys.modules or 'scipy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
