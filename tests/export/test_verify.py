"""Comparing the ways to run a model: on functions whose differences are known."""

from __future__ import annotations

import time

import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.data.dataset import Split
from qresearch.evaluation import make_batches
from qresearch.export.verify import (
    HEADER,
    LATENCY_BATCHES,
    Execution,
    compare,
    comparison_json,
    latency,
    table_rows,
)
from qresearch.tasks import TASKS

CLASSES, EXAMPLES = 4, 25  # in batches of 10: the last one is filled up
TASK = TASKS["classification"]


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(EXAMPLES, CLASSES)), rng.integers(0, CLASSES, EXAMPLES)
    return make_batches(Split(inputs.astype(np.float32), targets.astype(np.int32)), 10)


def doubled(x):
    return 2 * x


def compared(batches, **others):
    """simulated, codes and integer are the identity but for what ``others`` replaces."""
    same = dict.fromkeys(("simulated", "codes", "integer"), np.asarray)
    runs = {name: Execution(run, 1000) for name, run in {**same, **others}.items()}
    return compare(runs, TASK, doubled, batches)


def rows(comparison):
    return {row.name: row for row in comparison.rows}


def test_equal_executions_are_equal(batches):
    found = compared(batches)
    assert found.problems(0.0) == []
    assert found.examples == EXAMPLES
    assert found.bits() == ["codes and integer: equal in every bit"]
    for row in found.rows:
        assert (row.equal, row.difference, row.other_bits) == (1.0, 0.0, 0)
    # Scores are the task's, of the real examples: the filling counts for nothing.
    x, y = doubled(np.concatenate(batches.inputs)), np.concatenate(batches.targets)
    loss, score = (np.asarray(part)[:EXAMPLES] for part in (TASK.loss(x, y), TASK.score(x, y)))
    assert found.rows[0].score == pytest.approx(score.mean())
    assert found.rows[0].loss == pytest.approx(loss.mean(), rel=1e-6)
    assert found.largest == np.max(np.abs(x))


def swapped(count):
    """The identity, but that the first of so many examples of a batch have their outputs in the other order."""

    def run(x):
        outputs = np.array(x)
        outputs[:count] = outputs[:count, ::-1]
        return outputs

    return run


def test_other_predictions_are_counted(batches):
    found = compared(batches, onnx=swapped(2))
    row = rows(found)["onnx"]
    assert row.equal == 1 - 6 / EXAMPLES  # two of each of three batches: an even width has no middle to stay
    first_two = doubled(np.asarray(batches.inputs)[:, :2])
    assert row.difference == np.max(np.abs(first_two - first_two[..., ::-1]).astype(np.float64))
    (problem,) = found.problems(0.1)
    assert problem == "onnx: 24.00% of its predictions are not those of the simulation; the bound is 10.00%"
    assert found.problems(0.24) == []


def last_bit(x):
    """The identity, but for the last bit of one output of the fourth example of every batch."""
    outputs = np.array(x)
    outputs[3:4, 0] = np.nextafter(outputs[3:4, 0], np.float32(np.inf))
    return outputs


def test_codes_and_integers_must_agree_in_every_bit(batches):
    found = compared(batches, integer=last_bit)
    assert rows(found)["integer"].equal == 1.0
    assert found.bits() == ["codes and integer: differ in 3 of 25 examples"]
    # One example of each batch: of the last batch too, of whose ten five are real.
    assert found.problems(0.5) == ["codes and integer differ in 3 of 25 examples"]


def test_what_only_the_filling_has_is_no_difference(batches):
    def run(x):
        outputs = np.array(x)
        if np.array_equal(outputs, last):
            outputs[5:] += 1
        return outputs

    last = doubled(np.asarray(batches.inputs[-1]))
    assert compared(batches, integer=run).problems(0.0) == []


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["onnx", "simulated"])
def test_what_is_not_finite_is_a_problem(batches, name, wrong):
    found = compared(batches, **{"onnx": np.asarray, name: lambda x: np.where(np.arange(4) == 1, np.float32(wrong), x)})
    problems = found.problems(1.0)
    assert "onnx: its outputs, or those of the simulation, are not finite" in problems
    content = comparison_json(found, 1.0)
    assert content["problems"] == problems
    assert {row["name"]: row for row in content["executions"]}["onnx"]["largest_difference"] is None


def test_outputs_with_several_places(batches):
    def places(x):
        return np.stack([x, -np.asarray(x)], axis=1)

    def first_flipped(x):
        return places(x) * np.asarray([-1, 1])[:, None]

    task = TASKS["language_modelling"]
    targets = jnp.asarray(np.random.default_rng(0).integers(0, CLASSES, (3, 10, 2)), jnp.int32)
    runs = {name: Execution(places, None) for name in ("simulated", "codes", "integer")}
    found = compare(runs | {"onnx": Execution(first_flipped, None)}, task, doubled, batches._replace(targets=targets))
    assert rows(found)["integer"].equal == 1.0
    assert rows(found)["onnx"].equal == 0.5


def test_the_table_and_the_json(batches):
    found = compared(batches, onnx=swapped(1))
    cells = table_rows(found)
    assert all(len(row) == len(HEADER) for row in cells)
    assert cells[0][0] == "simulated"
    assert cells[0][2:5] == ("100.00%", "0", "1.0")
    content = comparison_json(found, 0.5)
    assert content["bound"] == 0.5
    for row in content["executions"]:
        assert set(row["latency_ms"]) == set(map(str, LATENCY_BATCHES))
        for own in row["latency_ms"].values():
            low, high = own["quartiles"]
            assert 0 < low <= own["median"] <= high


def test_latency_is_that_of_one_call(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    taken = iter([100.0, 100.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # the first two compile

    def run(x):
        now[0] += next(taken)

    found = latency(run, None, seconds=0.0)
    assert (found.median, found.quartiles, found.calls) == (3.0, (2.0, 4.0), 5)
