from __future__ import annotations

import numpy as np
import pytest

from qresearch.allocation import ALLOCATORS
from qresearch.cost import COSTS
from qresearch.errors import ConfigError
from qresearch.sensitivities import make_problem, sensitivity, tied_layers

NAMES = ("stem/kernel", "block0/query", "block0/key", "block0/out", "block1/query", "block1/key", "block1/out", "head")


@pytest.mark.parametrize(
    ("patterns", "groups"),
    [
        ([["block{}/*"]], [(1, 2, 3), (4, 5, 6)]),
        ([["block*"]], [(1, 2, 3, 4, 5, 6)]),
        ([["block{}/query", "block{}/key"]], [(1, 2), (4, 5)]),
        ([["block0/query", "block0/key"], ["*/out"]], [(1, 2), (3, 6)]),
        ([["*/{}"]], [(1, 4), (2, 5), (3, 6)]),  # what stands alone is not tied
        ([["stem/*", "head"]], [(0, 7)]),
        ([], []),
    ],
)
def test_patterns_tie_layers(patterns, groups):
    assert sorted(tied_layers(NAMES, patterns)) == groups


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([["block{}/value"]], "'block{}/value' matches no layer; did you mean"),
        ([["stem/kernel"]], "stem/kernel ties nothing; each of its groups is a single layer"),
        ([["stem.kernel", "head"]], "'stem.kernel' matches no layer"),  # a dot is a dot
    ],
)
def test_patterns_that_tie_nothing_are_refused(patterns, message):
    with pytest.raises(ConfigError, match=message.replace("{}", r"\{\}")):
        tied_layers(NAMES, patterns)


@pytest.fixture(scope="module")
def table(trained_digits):
    t = trained_digits
    from qresearch.evaluation import make_batches

    batches = make_batches(t.data.validation, 100, 100)
    return sensitivity(t.quantized, t.variables, t.qparams, batches, t.task, t.data.prepare)


@pytest.mark.parametrize("allocator", ["exact", "milp", "greedy", "annealing", "lagrangian", "random", "uniform"])
def test_allocators_keep_ties_and_all_budgets_at_once(trained_digits, table, allocator):
    model = trained_digits.quantized
    names = [layer.name for layer in model.layers]
    groups = tied_layers(names, [["linear1/*", "linear2/*"]])
    problem = make_problem(model, table, ("average_bits", "bops", "size"), groups=groups)
    budgets = np.array([[5.0, 0.9, 14.0]]) * [COSTS[name].total(model.counts) for name in problem.constraint_names]
    (chosen,), _ = ALLOCATORS[allocator](0, problem, budgets)
    assert chosen[0] == chosen[1]
    assert np.all(problem.total_cost(chosen) <= budgets[0])


def test_costs_by_name_and_of_allowed_options_only(trained_digits, table):
    model, asked = trained_digits.quantized, []

    def layer_cost(layers, weight_bits, input_bits):
        asked.extend(zip(np.repeat(layers.names.ravel(), weight_bits.size), weight_bits, input_bits))
        return layers.elements * weight_bits

    cost = COSTS["size"]._replace(layer_cost=layer_cost)
    problem = make_problem(model, table, {"own": cost, "size": COSTS["size"]})
    assert problem.constraint_names == ("own", "size")
    # linear3 is pinned to W8A8: a measured table need have no other row for it.
    assert [bits for name, *bits in asked if name == "linear3/kernel"] == [[8, 8]]
