"""One sweep for every task: nothing between the data and the report knows which task it is."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from small_sweep import stored, sweep, write_small
from tiny_tasks import REPORT, TINY

from qresearch.data import DATASETS
from qresearch.models import MODELS
from qresearch.report import points_of, run_tables
from qresearch.report.compare import mixed_versus_uniform
from qresearch.results import find_run
from qresearch.results.listing import list_runs
from qresearch.tasks import TASKS

TEXT = """\
name: tiny
task: {task}
data: {{name: tiny_{task}}}
model: {{name: tiny_{task}}}
float: {{epochs: 40, batch_size: 32, learning_rate: 1e-2}}
quantize:
  weight: {{quantizer: lsq, granularity: per_tensor, range: minmax}}
  input: {{quantizer: lsq, granularity: per_tensor, range: minmax}}
  menu: [[2, 2], [4, 4], [8, 8]]
calibration: {{examples: 64}}
sensitivity: {{examples: 100}}
evaluate: {{batch_size: 100}}
qat: {{epochs: 24, batch_size: 32, learning_rate: 1e-2}}
flow: ptq
allocation: {{bits: [8, 8]}}
sweep:
  list:
    - {{flow: float}}
    - {{flow: ptq}}
    - {{flow: ptq, allocation: {{bits: [2, 2]}}}}
    - {{flow: ptq, allocation: {{bits: [4, 4]}}}}
    - {{flow: ptq, allocation: {{allocator: exact, budget: 4}}}}
    - {{flow: qat, allocation: {{bits: [2, 2]}}}}
"""


@pytest.fixture(scope="module", params=TASKS)
def finished(request, tmp_path_factory):
    """(the task, the output folder) of a finished sweep."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, f"tiny_{name}", TINY[name].data)
        patch.setitem(MODELS, f"tiny_{name}", TINY[name].model)
        assert sweep(write_small(folder, TEXT.format(task=name)), folder / "out") == 0
    return TASKS[name], folder / "out"


def run_of(output):
    (folder,) = output.iterdir()
    return find_run(output, folder.name)


def test_every_trial_is_done_and_its_examples_average_to_its_score(finished):
    task, output = finished
    run = run_of(output)
    records = run.records().records
    assert len(records) == 6
    for record in records:
        assert (record.status, record.score_name, record.higher_is_better) == (
            "done",
            task.score_name,
            task.higher_is_better,
        )
        examples = run.examples(record)
        assert examples["score"].shape == examples["loss"].shape == (REPORT,)
        for measure in ("loss", "score"):
            assert np.mean(examples[measure], dtype=np.float64) == pytest.approx(
                record.metrics["test"][measure], rel=1e-4
            )


def test_fewer_bits_are_worse_and_training_makes_up_for_it(finished):
    task, output = finished
    records = stored(output)
    quality = {
        name: task.sign * np.array([record["metrics"][split]["score"] for split in ("test", "validation")])
        for name, record in records.items()
    }
    assert (quality["float-seed0"] > quality["ptq-lsq-w2a2-seed0"]).all()
    assert (quality["ptq-lsq-w8a8-seed0"] > quality["ptq-lsq-w2a2-seed0"]).all()
    assert (quality["qat-lsq-w2a2-seed0"] > quality["ptq-lsq-w2a2-seed0"]).all()
    np.testing.assert_allclose(quality["ptq-lsq-w8a8-seed0"], quality["float-seed0"], rtol=0.1)


def test_the_best_epoch_is_the_best_in_the_scores_direction(finished):
    task, output = finished
    record = stored(output)["qat-lsq-w2a2-seed0"]
    epochs = record["metrics"]["epochs"]
    best = max(epochs, key=lambda e: (task.sign * epochs[e]["validation_score"], -epochs[e]["validation_loss"]))
    assert record["metrics"]["best_epoch"] == int(best)
    assert record["metrics"]["validation"]["score"] == pytest.approx(epochs[best]["validation_score"], abs=1e-6)


def test_the_front_holds_what_nothing_beats_in_the_scores_direction(finished):
    task, output = finished
    with (run_of(output).path / "front.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["flow"] != "float"]
    cost, score = (np.array([float(row[name]) for row in rows]) for name in ("average_bits", "validation_score"))
    gain = task.sign * score
    beaten = [((cost <= c) & (gain >= g) & ((cost < c) | (gain > g))).any() for c, g in zip(cost, gain)]
    on_front = np.array([row["front"] == "1" for row in rows])
    assert not (on_front & beaten).any()
    assert {*zip(cost[on_front], gain[on_front])} == {*zip(cost[~np.array(beaten)], gain[~np.array(beaten)])}
    labels = {row["label"]: marked for row, marked in zip(rows, on_front)}
    assert labels["qat lsq uniform W2A2"]
    assert not labels["ptq lsq uniform W2A2"]


def test_mixed_against_uniform_is_judged_in_the_scores_direction(finished):
    task, output = finished
    run = run_of(output)
    records = run.records().records
    scores = {record.key: run.examples(record)["score"] for record in records}
    (row,) = mixed_versus_uniform(records, scores)
    assert row.difference.mean == pytest.approx(row.mixed_score - row.uniform_score, abs=1e-4)
    assert row.difference.low <= row.difference.mean <= row.difference.high
    mixed = next(record.key for record in records if record.allocation["allocator"] == "exact")
    shift = 10 * task.sign
    (better,) = mixed_versus_uniform(records, scores | {mixed: scores[mixed] + shift})
    (worse,) = mixed_versus_uniform(records, scores | {mixed: scores[mixed] - shift})
    assert "better" in better.real
    assert "worse" in worse.real


def test_tables_report_and_listing_say_the_direction(finished):
    task, output = finished
    run = run_of(output)
    text, page = "\n".join(run_tables(run)), (run.path / "report.html").read_text().lower()
    for words in (text, page):
        assert (f"smaller is better: {task.score_name}" in words) != task.higher_is_better
    (row,) = list_runs(output)
    quantized = [point for point in points_of(run.records().records) if point.flow != "float"]
    best = max(quantized, key=lambda point: task.sign * point.validation.mean)
    assert (row.best_score, row.score_name) == (best.test.mean, task.score_name)
