from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_sweep import compilations
from trained import MENU, PINNED, random_allocations, uniform

from qresearch.allocation import ALLOCATORS
from qresearch.cost import COSTS
from qresearch.errors import DataError
from qresearch.evaluation import make_batches
from qresearch.population import evaluate_population
from qresearch.sensitivities import allocation_bits, budget_of, make_problem, sensitivity

OPTIONS = tuple(sorted({*MENU, *PINNED}))


def measured(t, examples=120, **other):
    batches = make_batches(t.data.validation, 50, examples)
    variables = other.pop("variables", t.variables)
    return sensitivity(t.quantized, variables, t.qparams, batches, t.task, t.data.prepare, chunk=1, **other)


def losses(t, bits, examples=120):
    batches = make_batches(t.data.validation, 50, examples)
    args = (t.quantized, t.variables, t.qparams, bits[None], batches, t.task, t.data.prepare)
    return evaluate_population(*args, chunk=1).loss[0].astype(np.float64)


@pytest.fixture(scope="module")
def table(trained_digits):
    return measured(trained_digits)


def test_options_are_the_union_of_the_menus(table):
    assert table.options == OPTIONS
    assert table.loss.shape == table.standard_error.shape == (3, len(OPTIONS))


def test_infinite_exactly_where_a_layer_may_not_take_the_option(table):
    allowed = np.array([[option in MENU for option in OPTIONS]] * 2 + [[option in PINNED for option in OPTIONS]])
    np.testing.assert_array_equal(np.isfinite(table.loss), allowed)
    np.testing.assert_array_equal(np.isposinf(table.loss), ~allowed)
    np.testing.assert_array_equal(np.isfinite(table.standard_error), allowed)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_entry_is_one_layer_quantized_alone(trained_digits, table, layer):
    t = trained_digits
    in_float = losses(t, uniform(32, 32))
    for i, option in enumerate(OPTIONS):
        if not np.isfinite(table.loss[layer, i]):
            continue
        bits = uniform(32, 32)
        bits[layer] = option
        change = losses(t, bits) - in_float
        assert table.loss[layer, i] == change.mean()
        expected = np.sqrt(np.sum(np.square(change - change.mean())) / (len(change) - 1) / len(change))
        np.testing.assert_allclose(table.standard_error[layer, i], expected, rtol=1e-12)


def test_float_loss(trained_digits, table):
    np.testing.assert_allclose(table.float_loss, losses(trained_digits, uniform(32, 32)).mean(), rtol=1e-6)


def test_fewer_bits_hurt_more(table):
    assert np.all(table.loss[:2, OPTIONS.index((2, 2))] > table.loss[:2, OPTIONS.index((8, 8))])


def test_the_standard_error_is_that_of_the_mean_over_examples(trained_digits):
    # Many small samples of the examples: their means scatter as the standard error says, within its own noise.
    t, option = trained_digits, OPTIONS.index((2, 2))
    bits = uniform(32, 32)
    bits[0] = (2, 2)
    change = losses(t, bits, 300) - losses(t, uniform(32, 32), 300)
    stated = measured(t, 300).standard_error[0, option]
    means = np.random.default_rng(0).choice(change, size=(2000, 300)).mean(1)
    np.testing.assert_allclose(means.std(), stated, rtol=0.1)


def test_it_uses_the_program_that_populations_use(trained_digits):
    t = trained_digits
    losses(t, uniform(4, 4))
    with compilations() as compiled:
        measured(t)
    assert compiled.count("jit(step)") == 0


def test_progress_counts_pairs_and_the_float_model(trained_digits):
    done = []
    measured(trained_digits, on_done=done.append)
    assert done == list(range(1, 2 * len(MENU) + len(PINNED) + 2))


def test_one_example_has_no_standard_error(trained_digits):
    table = measured(trained_digits, 1)
    assert np.isfinite(table.loss[0]).all()
    assert np.isnan(table.standard_error).all()


def test_a_float_model_without_a_finite_loss_is_refused(trained_digits):
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), trained_digits.variables)
    with pytest.raises(DataError, match="the float model's loss is not finite"):
        measured(trained_digits, variables=broken)


def test_problem_by_hand(trained_digits, table):
    names = ("average_bits", "bops", "size")
    problem = make_problem(trained_digits.quantized, table, names)
    # The MLP on 8x8 images: 64 x 128, 128 x 64 and 64 x 10; a dense layer has as many macs as weights.
    elements = np.array([8192, 8192, 640])
    weight, input = np.array(OPTIONS).T
    allowed = np.isfinite(table.loss)  # what a layer may not take has no price
    np.testing.assert_array_equal(problem.costs[0], elements[:, None] * weight * allowed)
    np.testing.assert_array_equal(problem.costs[1], elements[:, None] * weight * input * allowed)
    # A scale of 32 bits for the weights and one for the input.
    np.testing.assert_array_equal(problem.costs[2], problem.costs[0] + 64 * allowed)
    assert problem.costs.dtype.kind == "i"
    assert problem.layer_names == ("linear1/kernel", "linear2/kernel", "linear3/kernel")
    assert problem.option_names[0] == "W2A2"
    np.testing.assert_array_equal(problem.loss, table.loss)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_budget_that_equals_a_uniform_allocation_admits_it(trained_digits, table, cost, option):
    model = trained_digits.quantized
    price = float(COSTS[cost].of(model.counts, uniform(*option)))
    limit = budget_of(model, cost, price)
    used = sum(COSTS[cost].table(model.counts, [option])[:, 0])
    assert used <= limit < used + 1


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("budget", [3.0, 4.0, 5.5])
def test_chosen_bits_keep_the_budget_that_users_read(trained_digits, table, allocator, budget):
    model = trained_digits.quantized
    problem = make_problem(model, table)
    limit = budget_of(model, "average_bits", budget)
    allocations, _ = ALLOCATORS[allocator](0, problem, np.asarray([limit]))
    bits = allocation_bits(table, allocations[0])
    assert bits.shape == (3, 2)
    assert bits.dtype == np.float32
    assert all(tuple(int(b) for b in row) in menu for row, menu in zip(bits, model.menus))
    sizes = [layer.size for layer in model.layers]
    assert np.dot(sizes, bits[:, 0]) / sum(sizes) <= budget + 1e-9


def test_the_table_predicts_allocations(trained_digits):
    """Additive predictions rank allocations: what makes a search by the table worth anything."""
    t = trained_digits
    table = measured(t, 300)
    rng = np.random.default_rng(0)
    picks = np.stack([[rng.choice(np.flatnonzero(np.isfinite(row))) for row in table.loss] for _ in range(12)])
    predicted = table.loss[np.arange(3), picks].sum(1)
    true = [losses(t, allocation_bits(table, pick), 300).mean() for pick in picks]
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, true)]
    assert np.corrcoef(*ranks)[0, 1] > 0.7


def test_helper_makes_different_allocations():
    assert len(np.unique(random_allocations(64), axis=0)) == 64
