"""The model of a finished trial, rebuilt from the folder of its run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from small_sweep import SMALL, sweep, write_small

from qresearch.errors import DataError
from qresearch.results import find_run
from qresearch.sweep.outcome import summary
from qresearch.sweep.restore import find_trial, restore

METHODS = SMALL.partition("sweep:")[0] + (
    "sweep:\n"
    "  list:\n"
    "    - {ptq: [gptq, bias_correction], allocation: {bits: [2, 8]}}\n"
    "    - {ptq: [equalize, hadamard], allocation: {bits: [4, 4]}}\n"
    "    - {ptq: [reestimate_batchnorm]}\n"
)


@pytest.fixture(scope="module")
def treated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("treated")
    assert sweep(write_small(folder, METHODS), folder / "out") == 3  # an MLP has no BatchNorm to re-estimate
    return find_run(folder / "out", "small")


@pytest.fixture
def run(finished_sweep):
    return find_run(finished_sweep, "small")


@pytest.fixture
def copied(finished_sweep, tmp_path):
    """A copy of the run that a test may damage."""
    shutil.copytree(finished_sweep, tmp_path / "out")
    return find_run(tmp_path / "out", "small")


def by_label(run, label):
    return find_trial(run, label)


def assert_same_scores(run, record):
    """The restored model has the losses and the score of the record, example by example."""
    found = restore(run, record)
    scores, test = found.scores(found.bench.test), record.metrics["test"]
    summed = summary(scores, found.setup.task)
    assert summed["score"] == pytest.approx(test["score"], abs=1e-6)
    assert summed["loss"] == pytest.approx(test["loss"], rel=1e-5)
    np.testing.assert_allclose(scores.loss, run.examples(record)["loss"], rtol=1e-3, atol=1e-5)
    assert len(scores.loss) == 400


@pytest.mark.parametrize(
    "label",
    [
        "float-seed0",
        "ptq-lsq-w4a4-seed0",
        "ptq-lsq-exact-4bits-seed0",
        "qat-lsq-w2a2-seed0",
        "qat-lsq-exact-3bits-seed0",
    ],
)
def test_a_restored_model_has_the_scores_of_its_record(run, label):
    assert_same_scores(run, find_trial(run, label))


@pytest.mark.parametrize("label", ["ptq-lsq-gptq-bias_correction", "ptq-lsq-equalize-hadamard"])
def test_a_treated_model_has_the_scores_of_its_record(treated, label):
    assert_same_scores(treated, find_trial(treated, label))


def test_a_trial_that_failed_has_no_model(treated):
    failed = find_trial(treated, "ptq-lsq-reestimate")
    with pytest.raises(DataError, match=r"trial ptq-lsq-reestimate.* has no model: it failed \(reestimate_batchnorm"):
        restore(treated, failed)


# ---- Which trial


def test_a_trial_by_the_beginning_of_its_key_or_label(run):
    record = find_trial(run, "qat-lsq-w2a2-seed0")
    assert find_trial(run, record.key) == find_trial(run, record.key[:8]) == find_trial(run, "qat-lsq-w2") == record


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("qat", r"'qat' means 3 trials: .*qat-lsq-w2a2-seed0.*; give more of a key"),
        ("qat-lsq-w2a3", "no finished trial 'qat-lsq-w2a3' in .*did you mean .*qat-lsq-w2a2-seed0"),
        ("", "no finished trial ''"),
    ],
)
def test_a_trial_must_be_one(run, given, message):
    with pytest.raises(DataError, match=message):
        find_trial(run, given)


def test_without_a_name_it_is_the_best_of_the_front(run):
    best = find_trial(run)
    quantized = [record for record in run.records().records if record.flow != "float"]
    scores = {record.key: record.metrics["validation"]["score"] for record in quantized}
    assert scores[best.key] == max(scores.values())
    # Of equal ones the front keeps the cheapest.
    equal = [r for r in quantized if scores[r.key] == scores[best.key]]
    assert best.costs["average_bits"] == min(record.costs["average_bits"] for record in equal)


def test_a_run_of_float_trials_has_no_best(tmp_path):
    text = SMALL.partition("sweep:")[0].replace("flow: ptq", "flow: float").replace("epochs: 5", "epochs: 0")
    assert sweep(write_small(tmp_path, text), tmp_path / "out") == 0
    with pytest.raises(DataError, match="no quantized trial has finished"):
        find_trial(find_run(tmp_path / "out", "small"))


# ---- Damage


def checkpoint_of(run, record, folder="checkpoints"):
    if folder == "checkpoints":
        return run.path / folder / record.key[:16]
    return next(path for path in (run.path / folder).iterdir() if path.is_dir())


@pytest.mark.parametrize(("label", "folder"), [("qat-lsq-w2", "checkpoints"), ("ptq-lsq-w4", "float")])
def test_a_missing_checkpoint_is_named(copied, label, folder):
    record = find_trial(copied, label)
    path = checkpoint_of(copied, record, folder)
    shutil.rmtree(path)
    with pytest.raises(DataError, match=f"{path.name}: not a complete checkpoint of this model"):
        restore(copied, record)


def test_an_altered_checkpoint_is_named(copied):
    record = find_trial(copied, "qat-lsq-w2")
    path = checkpoint_of(copied, record)
    name = max(json.loads((path / "sha256.json").read_text())["files"], key=lambda file: (path / file).stat().st_size)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{path.name}: not a complete checkpoint.*{name} was altered"):
        restore(copied, record)


def test_a_checkpoint_of_another_trial_is_refused(copied):
    record = find_trial(copied, "qat-lsq-w2")
    shutil.copytree(checkpoint_of(copied, record, "float"), checkpoint_of(copied, record), dirs_exist_ok=True)
    with pytest.raises(DataError, match="not a complete checkpoint of this model"):
        restore(copied, record)


def test_a_damaged_record_is_named(copied):
    record = find_trial(copied, "qat-lsq-w2")
    (path,) = copied.path.glob(f"trials/{record.key[:8]}-*/result.json")
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DataError, match="the content was altered after it was written"):
        find_trial(copied, record.key[:12])


def test_restoring_changes_nothing_in_the_run(run):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    record = find_trial(run, "qat-lsq-w2")
    restore(run, record)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
