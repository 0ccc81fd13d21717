from __future__ import annotations

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.allocation import ALLOCATORS
from qresearch.config import expand, from_mapping
from qresearch.errors import BudgetError, ConfigError, DataError, GraphError
from qresearch.models import MODELS, Model
from qresearch.sensitivities import Sensitivity
from qresearch.sweep.assemble import known_names
from qresearch.sweep.bench import Bench
from qresearch.sweep.check_choice import _rounded_up
from qresearch.sweep.progress import Silent

SITE = {"quantizer": "lsq", "granularity": "per_tensor", "range": "minmax"}
BASE = {
    "name": "x",
    "flow": "ptq",
    "model": {"name": "mlp"},
    "quantize": {"weight": SITE, "input": SITE, "menu": [[2, 2], [4, 4], [8, 8]]},
    "calibration": {"examples": 16},
    "sensitivity": {"examples": 30},
    "evaluate": {"batch_size": 30},
    "allocation": {"bits": [4, 4]},
}
OPTIONS = ((2, 2), (4, 4), (8, 8))
# Losses for three layers of unlike size, so that a search has a choice to make.
TABLE = Sensitivity(np.array([[0.9, 0.2, 0.0], [0.5, 0.3, 0.0], [0.1, 0.05, 0.0]]), np.zeros((3, 3)), OPTIONS, 1.0)


def configs_of(**values):
    return expand(from_mapping({**BASE, **values}), known_names())


def bench_of(tmp_path, **values):
    return Bench(configs_of(**values)[0], tmp_path, Silent())


def variables_of(seed):
    return jax.jit(MODELS["mlp"](10).init)(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))


def budget(allocator, value, cost="average_bits", seed=0):
    return configs_of(allocation={"allocator": allocator, "budget": value, "cost": cost}, seed=seed)[0]


# ---- What is shared, and what is not


def test_equal_recipes_share_a_trainer_and_others_do_not(tmp_path):
    bench, variables = bench_of(tmp_path), variables_of(0)
    qat = [configs_of(flow="qat", qat={"epochs": epochs, "learning_rate": rate})[0]
           for epochs, rate in ((1, 0.1), (1, 0.2), (2, 0.1))]  # fmt: skip
    one, same, other = (bench.trainer("a", variables, config) for config in qat)
    assert one is same
    assert one is not other


def test_float_models_share_the_programs_of_one_quantized_model(tmp_path):
    bench = bench_of(tmp_path)
    assert bench.model("a", variables_of(0)) is bench.model("b", variables_of(1))


def signed_model(classes):
    """A model whose second layer sees negative inputs where the parameter ``shift`` is negative."""

    def apply(variables, x):
        params = variables["params"]
        hidden = jax.nn.relu(x.reshape(x.shape[0], -1) @ params["first"]) + params["shift"]
        return hidden @ params["second"]

    def init(key, x):
        first, second, shift = jax.random.split(key, 3)
        params = {"first": jax.random.normal(first, (64, 8)), "second": jax.random.normal(second, (8, classes))}
        return {"params": {**params, "shift": jnp.where(jax.random.bernoulli(shift), 1.0, -1.0)}}

    return Model(init, apply, lambda variables, inputs: (apply(variables, inputs[0]), {}))


SIGNED = signed_model(10)


def signs_of(model):
    """Whether each layer's input has negative codes."""
    lowest = []
    for unit in model.units:
        qparams = unit.input.init(jnp.array([[-1.0, 1.0]]), 8.0)
        lowest.append(float(unit.input.apply(qparams, jnp.array([[-1.0]]), 8.0)[0, 0]) < 0)
    return lowest


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_signs_are_each_float_models_own_whichever_comes_first(tmp_path, monkeypatch, order):
    # Otherwise a seed's results depend on which other seeds are in the sweep, or are left to run after an interrupt.
    monkeypatch.setitem(MODELS, "signed", lambda classes: SIGNED)
    seeds = {shift: next(seed for seed in range(20) if float(
        SIGNED.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))["params"]["shift"]) == shift)
        for shift in (1.0, -1.0)}  # fmt: skip
    bench = bench_of(tmp_path, model={"name": "signed"})
    found = {}
    for which in order:
        shift = (1.0, -1.0)[which]
        variables = SIGNED.init(jax.random.key(seeds[shift]), jnp.zeros((1, 8, 8, 1)))
        found[shift] = signs_of(bench.model(f"shift {shift}", variables))
    assert found == {1.0: [False, False], -1.0: [False, True]}


def test_calibration_is_done_once_for_each_float_model(tmp_path):
    bench, variables = bench_of(tmp_path), variables_of(0)
    table = bench.calibrated("a", variables, (3,))
    assert np.asarray(table.widths).tolist() == [2, 3, 4, 8]
    assert bench.calibrated("a", variables, (3,)) is table
    assert bench.calibrated("b", variables_of(1), (3,)) is not table


def test_calibration_uses_the_first_training_examples_and_no_others(tmp_path):
    bench = bench_of(tmp_path)
    data = bench.setup.data
    np.testing.assert_array_equal(bench.calibration_inputs, data.prepare(data.train.inputs[:16]))


def test_choices_are_made_on_validation_and_reported_on_test(tmp_path):
    bench = bench_of(tmp_path)
    data = bench.setup.data
    for batches, split in ((bench.test, data.test), (bench.validation, data.validation)):
        targets = np.asarray(batches.targets).reshape(-1)[: batches.examples]
        np.testing.assert_array_equal(targets, split.targets)


def test_the_sensitivity_table_is_kept_for_people(tmp_path):
    bench, variables = bench_of(tmp_path), variables_of(0)
    table = bench.chooser.sensitivity(
        "key", variables, bench.calibrated("key", variables, ()), bench.config.sensitivity
    )
    (path,) = (tmp_path / "sensitivity").glob("key-loss_increase-*.json")
    content = json.loads(path.read_text())
    assert content["layers"] == ["linear1/kernel", "linear2/kernel", "linear3/kernel"]
    assert content["options"] == [list(option) for option in OPTIONS]
    np.testing.assert_allclose(content["loss"], table.loss)
    np.testing.assert_allclose(content["standard_error"], table.standard_error)
    assert content["float_loss"] == table.float_loss


@pytest.mark.parametrize("spoil", ["nothing", "torn", "altered", "of other examples"])
def test_a_stored_sensitivity_table_is_used_if_it_is_whole(tmp_path, spoil):
    first, variables = bench_of(tmp_path), variables_of(0)
    qparams, chosen = first.calibrated("key", variables, ()), first.config.sensitivity
    table = first.chooser.sensitivity("key", variables, qparams, chosen)
    (path,) = (tmp_path / "sensitivity").iterdir()
    text = path.read_text()
    path.write_text({"torn": text[:-20], "altered": text.replace('"seconds": ', '"seconds": 1')}.get(spoil, text))
    other = chosen.model_copy(update={"examples": 20}) if spoil == "of other examples" else chosen
    measured, lines = [], []

    class Phases(Silent):
        def phase(self, name, total):
            measured.append(name)
            return super().phase(name, total)

        def line(self, text):
            lines.append(text)

    second = dataclasses.replace(first, reporter=Phases())
    again = second.chooser.sensitivity("key", variables, second.calibrated("key", variables, ()), other)
    assert bool(measured) == (spoil != "nothing")
    assert [line.endswith("the sensitivities are measured again") for line in lines] == [True] * (
        spoil in ("torn", "altered")
    )
    if spoil != "of other examples":
        np.testing.assert_array_equal(again.loss, table.loss)
        np.testing.assert_array_equal(again.standard_error, table.standard_error)
        assert (again.options, again.float_loss) == (table.options, table.float_loss)


# ---- Allocation


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_trials_bits_depend_on_its_own_config_only(tmp_path, allocator):
    bench = bench_of(tmp_path)
    budgets = (2.5, 3.0, 4.0, 6.0)
    together = [bench.chooser.allocate(budget(allocator, value), TABLE) for value in budgets]
    for value, bits in list(zip(budgets, together))[::-1]:
        np.testing.assert_array_equal(bench_of(tmp_path).chooser.allocate(budget(allocator, value), TABLE), bits)


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize(("cost", "value"), [("average_bits", 3.5), ("size", 8.0), ("bops", 0.3)])
def test_budgets_are_in_the_unit_that_records_report(tmp_path, allocator, cost, value):
    bits = bench_of(tmp_path).chooser.allocate(budget(allocator, value, cost), TABLE)
    elements = np.array([8192, 8192, 640])
    weight, input = bits.T
    used = {
        "average_bits": (elements * weight).sum() / elements.sum(),
        "size": (elements * weight + 64).sum() / 8000,
        "bops": (elements * weight * input).sum() / 1e6,
    }[cost]
    assert 0 < used <= value * (1 + 1e-9)


def test_the_exact_allocator_against_a_search_by_hand(tmp_path):
    elements = np.array([8192, 8192, 640])
    best = min(
        (TABLE.loss[0, i] + TABLE.loss[1, j] + TABLE.loss[2, k], (i, j, k))
        for i in range(3) for j in range(3) for k in range(3)
        if np.dot(elements, [OPTIONS[n][0] for n in (i, j, k)]) <= 4.5 * elements.sum()
    )[1]  # fmt: skip
    bits = bench_of(tmp_path).chooser.allocate(budget("exact", 4.5), TABLE)
    np.testing.assert_array_equal(bits, [OPTIONS[n] for n in best])


# ---- What is refused before anything is computed


@pytest.mark.parametrize(
    ("cost", "value", "least"), [("average_bits", 1.9, "2"), ("size", 4.0, "4.28"), ("bops", 0.05, "0.0681")]
)
def test_a_budget_below_the_cheapest_allocation_says_what_is_enough(tmp_path, cost, value, least):
    bench = bench_of(tmp_path)
    with pytest.raises(BudgetError, match=rf"^allocation.budget: {value:g} .*\({cost}\).*give at least {least}$"):
        bench.check([budget("exact", value, cost)])
    bench.check([budget("exact", float(least), cost)])
    bench.chooser.allocate(budget("exact", float(least), cost), TABLE)


def test_pinned_layers_count_in_the_cheapest_allocation(tmp_path):
    quantize = {**BASE["quantize"], "rules": [{"pattern": "linear1/*", "menu": [[8, 8]]}]}
    bench = bench_of(tmp_path, quantize=quantize)
    least = (8192 * 8 + (8192 + 640) * 2) / (2 * 8192 + 640)
    bench.check([budget("exact", math.ceil(least * 1000) / 1000)])
    with pytest.raises(BudgetError):
        bench.check([budget("exact", math.floor(least * 1000) / 1000)])


@pytest.mark.parametrize("value", [2.0, 4.256, 0.068096, 1234.5, 1e-9, 99999.4, 0.30000000000000004])
def test_rounding_up_gives_what_can_be_typed_and_is_enough(value):
    rounded = float(f"{_rounded_up(value):g}")
    assert value * (1 - 1e-12) <= rounded <= value * 1.002


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"float": {"batch_size": 1098}}, ConfigError, "float.batch_size 1098 exceeds the 1097 training examples"),
        ({"float": {"epochs": 3, "warmup_epochs": 3}}, ConfigError, "float.warmup_epochs 3 leaves nothing of 3 epochs"),
        ({"flow": "qat", "qat": {"batch_size": 5000}}, ConfigError, "qat.batch_size 5000 exceeds the 1097"),
        ({"flow": "qat", "qat": {"epochs": 1, "warmup_epochs": 1}}, ConfigError, "qat.warmup_epochs 1 leaves nothing"),
        ({"model": {"name": "mlp", "weights": "gone.npz"}}, DataError, "model.weights: no file gone.npz"),
        ({"data": {"name": "cifar10", "folder": "gone"}}, DataError, "cifar10: the data folder gone is not a folder"),
        (
            {"quantize": {"rules": [{"pattern": "*", "weight": "float", "input": "float"}]}},
            GraphError,
            "flow ptq: the rules leave every layer in float; use flow float",
        ),
        (
            {"quantize": {"rules": [{"pattern": "linaer1/*"}]}},
            GraphError,
            "rule pattern 'linaer1/*' matches no layer; did you mean 'linear1'",
        ),
    ],
)
def test_what_cannot_run_is_refused(tmp_path, values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        bench_of(tmp_path, **values).check(configs_of(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"float": {"batch_size": 1097}},
        {"float": {"epochs": 0}},
        {"qat": {"batch_size": 5000}},  # no trial of this bench trains
        {"flow": "float", "quantize": {"rules": [{"pattern": "*", "weight": "float", "input": "float"}]}},
    ],
)
def test_what_can_run_is_not(tmp_path, values):
    bench_of(tmp_path, **values).check(configs_of(**values))
    assert list(tmp_path.iterdir()) == []
