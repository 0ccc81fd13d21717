"""What every search keeps, on the small MLP of ``trained.Digits``: its last layer is pinned, its menus are no grid."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from search_cases import TRAINERS, costs_of, digits_subject
from small_sweep import compilations

from qresearch.cost import Cost
from qresearch.errors import BudgetError, ConfigError, TrainingError
from qresearch.options import check_options
from qresearch.search import SEARCHES
from qresearch.search.dq import PARAMETRIZATIONS
from qresearch.training import Recipe

EVERY = pytest.mark.parametrize("name", SEARCHES)
COST = "bops"


def affordable(model, cost=COST):
    """All costs that allocations of the menus have, ascending."""
    every = np.asarray([*itertools.product(*model.menus)])
    return np.unique(costs_of(model, cost, every))


@pytest.fixture(scope="module")
def subject(trained_digits):
    return digits_subject(trained_digits)


@EVERY
def test_budgets_are_met_from_below_in_one_compilation(subject, name):
    model, possible = subject.model, affordable(subject.model)
    budgets = [int(possible[0]), int(possible[len(possible) // 3]), int(possible[-1]) + 1]
    TRAINERS.clear()
    with compilations() as compiled:
        bits, info = SEARCHES[name](0, subject, COST, budgets)
    assert compiled.count("jit(step)") == 2  # one training, one evaluation
    costs = costs_of(model, COST, bits)
    for cost, budget, share in zip(costs, budgets, info["cost"]):
        closest = possible[possible <= budget][-1]
        assert 0.99 * closest <= cost <= budget
        np.testing.assert_allclose(share, cost / min(budget, possible[-1]))
    assert np.all(np.diff(costs) > 0)
    with compilations() as compiled:
        SEARCHES[name](1, subject, "size", [int(affordable(model, "size")[1])], strength=2.0)
    assert "jit(step)" not in compiled  # nor for another seed, cost or strength


@EVERY
def test_every_layer_takes_an_option_of_its_menu_and_pinned_layers_their_only_one(subject, name):
    model, possible = subject.model, affordable(subject.model)
    bits, info = SEARCHES[name](0, subject, COST, [int(possible[1])])
    assert bits.dtype == np.float32
    assert bits.shape == (1, len(model.layers), 2)
    for layer, menu in enumerate(model.menus):
        assert tuple(map(int, bits[0, layer])) in menu
        if len(menu) == 1:
            assert info["learned_bits"][0][layer] == info["initial_bits"][layer] == list(menu[0])
    assert sum(len(menu) == 1 for menu in model.menus) == 1
    for shares in itertools.chain(*info["shares"][0]):
        np.testing.assert_allclose(sum(shares.values()), 1, rtol=1e-5)


@EVERY
def test_the_key_decides_and_other_budgets_do_not(subject, name):
    low, high = (int(affordable(subject.model)[i]) for i in (1, -2))
    first, info = SEARCHES[name](7, subject, COST, [low, high])
    again, same = SEARCHES[name](7, subject, COST, [high])
    np.testing.assert_array_equal(first[1], again[0])
    assert info["learned_bits"][1] == same["learned_bits"][0]
    _, other = SEARCHES[name](jax.random.key(8), subject, COST, [high])
    assert info["validation_score"][1] == same["validation_score"][0]
    assert other["expected_cost"] != same["expected_cost"]


@EVERY
def test_an_impossible_budget_is_refused_with_the_smallest_possible_one(subject, name):
    least = int(affordable(subject.model)[0])
    with pytest.raises(BudgetError, match=f"budget {least - 1} is below {least}.*give at least {least}$"):
        SEARCHES[name](0, subject, COST, [least, least - 1])


@EVERY
def test_a_loss_that_is_not_finite_is_one_error_with_the_step_and_the_cause(subject, name):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, subject.variables["params"]["linear2"])
    params = {**subject.variables["params"], "linear2": broken}
    lost = dataclasses.replace(subject, variables={**subject.variables, "params": params})
    with pytest.raises(
        TrainingError,
        match=r"bops budget [0-9.e+]+: the loss became nan at step 1 .*before any update: the quantized model",
    ):
        SEARCHES[name](0, lost, COST, [int(affordable(subject.model)[-1])])


@EVERY
def test_plain_gradient_descent_is_refused(subject, name):
    plain = dataclasses.replace(subject, recipe=Recipe(epochs=1, optimizer="sgd"), trainers={})
    with pytest.raises(ConfigError, match="set the recipe's optimizer to adam or adamw"):
        SEARCHES[name](0, plain, COST, [int(affordable(subject.model)[-1])])


@EVERY
def test_without_epochs_the_start_is_made_discrete(subject, name):
    still = dataclasses.replace(subject, recipe=dataclasses.replace(subject.recipe, epochs=0), trainers={})
    budget = int(affordable(subject.model)[3])
    bits, info = SEARCHES[name](0, still, COST, [budget])
    assert info["learned_bits"][0] == info["initial_bits"]
    assert costs_of(subject.model, COST, bits)[0] == budget


@pytest.mark.slow
@EVERY
def test_the_penalty_steers_and_without_it_nothing_does(subject, name):
    longer = dataclasses.replace(subject, recipe=dataclasses.replace(subject.recipe, epochs=6))
    possible = affordable(subject.model)
    budget = [int(possible[0] * 1.2)]
    _, free = SEARCHES[name](0, longer, COST, budget, strength=0.0)
    _, steered = SEARCHES[name](0, longer, COST, budget)
    assert free["expected_cost"][0] > 1.5
    assert steered["expected_cost"][0] < 1.1
    moved = np.abs(np.subtract(steered["learned_bits"][0], steered["initial_bits"]))
    assert moved.max() >= 1


@EVERY
def test_a_cost_that_is_no_formula_and_tied_layers(subject, name):
    model = subject.model

    def measured(layers, weight_bits, input_bits):
        """A machine with one unit for 4 bits and one for 8."""
        return layers.macs * np.where(np.maximum(weight_bits, input_bits) <= 4, 1, 3)

    cost = Cost(measured, lambda layers: 1.0, "cycles", "made up")
    tied = dataclasses.replace(subject, groups=((0, 1),))
    macs = [layer.macs for layer in model.layers]
    dear, cheap = 3 * sum(macs), macs[0] + macs[1] + 3 * macs[2]
    bits, _ = SEARCHES[name](0, tied, cost, [cheap, dear - 1, dear])
    assert bits[:2, :2].max() <= 4  # one of the two layers alone may not use the rest of the second budget
    np.testing.assert_array_equal(bits[:, 0], bits[:, 1])
    assert bits[2, 0].max() == 8
    with pytest.raises(BudgetError, match=f"cycles: budget {cheap - 1} is below {cheap}"):
        SEARCHES[name](0, tied, cost, [cheap - 1])


@pytest.mark.slow
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_dq_searches_with_each_of_its_parametrizations(subject, parametrization):
    budget = int(affordable(subject.model)[2])
    bits, info = SEARCHES["dq"](0, subject, COST, [budget], parametrization=parametrization)
    assert costs_of(subject.model, COST, bits)[0] <= budget
    assert np.all(np.asarray(info["learned_bits"]) == np.round(info["learned_bits"]))


def test_an_unknown_parametrization_is_refused(subject):
    with pytest.raises(ConfigError, match="unknown parametrization 'u4'"):
        SEARCHES["dq"](0, subject, COST, [1], parametrization="u4")


@EVERY
def test_options_are_checked_like_those_of_any_registered_function(name):
    check_options("allocation", f"search '{name}'", SEARCHES[name], {"strength": 2.0, "travel": 8.0})
    with pytest.raises(ConfigError, match="has no option 'strenght'; did you mean 'strength'"):
        check_options("allocation", f"search '{name}'", SEARCHES[name], {"strenght": 2.0})
