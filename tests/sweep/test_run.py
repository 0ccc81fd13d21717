from __future__ import annotations

import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest
from small_sweep import ONE, SMALL, outcome_of, state_of, stored, sweep, write_small

from qresearch.results import find_run
from qresearch.results.lock import locked

LABELS = {
    "float-seed0",
    "ptq-lsq-w4a4-seed0",
    "ptq-lsq-exact-4bits-seed0",
    "ptq-lsq-random-3bits-seed0",
    "qat-lsq-w4a4-seed0",
    "qat-lsq-w2a2-seed0",
    "qat-lsq-exact-3bits-seed0",
}


# ---- What a run leaves


def test_every_trial_has_a_record(finished_sweep):
    records = stored(finished_sweep)
    assert set(records) == LABELS
    assert all(record["status"] == "done" and record["reason"] is None for record in records.values())


def test_the_run_folder(finished_sweep):
    (folder,) = finished_sweep.iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"sweep.yaml", "resolved.json", "env.json", "trials", "float", "sensitivity", "checkpoints"} <= names
    assert {"front.csv", "allocations.csv", "front.png", "report.html"} <= names
    assert (folder / "sweep.yaml").read_text() == SMALL
    assert len(list((folder / "checkpoints").iterdir())) == 3
    assert not list(folder.rglob("*.tmp"))


def test_costs_by_hand(finished_sweep):
    # The MLP on 8x8 images: 64 x 128, 128 x 64, 64 x 10 weights, each used once per example.
    elements = np.array([8192, 8192, 640])
    for record in stored(finished_sweep).values():
        weight, input = np.array(record["allocation"]["bits"]).T
        costs = record["costs"]
        assert costs["average_bits"] == pytest.approx((elements * weight).sum() / 17024)
        # Per tensor: a scale of 32 bits for the weights and one for the input of every layer.
        scales = 32 * ((weight < 32).astype(int) + (input < 32))
        assert costs["size"] == pytest.approx((elements * weight + scales).sum() / 8000)
        assert costs["bops"] == pytest.approx((elements * weight * input).sum() / 1e6)
        assert costs["relative_bops"] == pytest.approx((elements * weight * input).sum() / (17024 * 1024))
    assert stored(finished_sweep)["float-seed0"]["costs"]["size"] == pytest.approx(17024 * 32 / 8000)


def test_bits_and_budgets(finished_sweep):
    records = stored(finished_sweep)
    layers = ["linear1/kernel", "linear2/kernel", "linear3/kernel"]
    assert all(record["allocation"]["layers"] == layers for record in records.values())
    assert records["ptq-lsq-w4a4-seed0"]["allocation"]["bits"] == [[4, 4]] * 3
    assert records["float-seed0"]["allocation"]["bits"] == [[32, 32]] * 3
    for label, record in records.items():
        allocation = record["allocation"]
        asked = record["config"]["allocation"]
        if "exact" in label or "random" in label:
            assert allocation["budget"] == {"average_bits": asked["budget"]}
            assert allocation["allocator"] == asked["allocator"]
            assert record["costs"]["average_bits"] <= asked["budget"] + 1e-9
        else:
            assert allocation["budget"] is None
            assert allocation["allocator"] == (None if label == "float-seed0" else "uniform")
        assert allocation["treatment"] == "all 3 layers free, first and last included"


def test_scores_of_both_splits_and_of_every_example(finished_sweep):
    (folder,) = finished_sweep.iterdir()
    run = find_run(finished_sweep, folder.name)
    found = run.records()
    assert found.invalid == ()
    for record in found.records:
        for split in ("test", "validation"):
            assert 0 <= record.metrics[split]["score"] <= 1
            assert record.metrics[split]["loss"] > 0
        examples = run.examples(record)
        assert len(examples["score"]) == len(examples["loss"]) == 400
        np.testing.assert_allclose(examples["loss"].mean(), record.metrics["test"]["loss"], rtol=1e-5)
        np.testing.assert_allclose(examples["score"].mean(), record.metrics["test"]["score"], rtol=1e-5)


def test_the_history_of_qat_trials(finished_sweep):
    (folder,) = finished_sweep.iterdir()
    run = find_run(finished_sweep, folder.name)
    for record in run.records().records:
        rows, torn = run.metrics(record.key)
        assert torn == 0
        assert [row["epoch"] for row in rows] == (list(range(1, 9)) if record.flow == "qat" else [])
        for row in rows:
            assert record.metrics["epochs"][str(row.pop("epoch"))] == row


def test_the_environment(finished_sweep):
    (folder,) = finished_sweep.iterdir()
    for record in stored(finished_sweep).values():
        environment = record["environment"]
        assert environment["versions"]["jax"] == jax.__version__
        assert environment["versions"]["python"] == sys.version.split()[0]
        assert environment["device"] == {"kind": jax.devices()[0].device_kind, "count": len(jax.devices())}
        assert environment.pop("sources")["models/mlp"]
    assert json.loads((folder / "env.json").read_text()) == environment


@pytest.mark.parametrize(
    ("rules", "bits", "treatment"),
    [
        (
            "[{pattern: 'linear1/*', menu: [[8, 8]]}]",
            [[8, 8], [4, 4], [4, 4]],
            "pinned: linear1/kernel W8A8",
        ),
        (
            "[{pattern: 'linear3/*', weight: float, input: float}]",
            [[4, 4], [4, 4]],
            "in float: linear3/kernel",
        ),
        (
            "[{pattern: 'linear1/*', input: float}, {pattern: 'linear3/*', menu: [[8, 8]]}]",
            [[4, 32], [4, 4], [8, 8]],
            "pinned: linear3/kernel W8A8; in float: linear1/kernel input",
        ),
    ],
)
def test_pinned_and_float_layers_are_said_and_charged(tmp_path, rules, bits, treatment):
    values = (*ONE, "allocation.bits=[4, 4]", f"quantize.rules={rules}")
    assert sweep(write_small(tmp_path), tmp_path / "out", *values) == 0
    (record,) = stored(tmp_path / "out").values()
    assert record["allocation"]["treatment"] == treatment
    assert record["allocation"]["bits"] == bits
    elements = np.array([8192, 8192, 640])[: len(bits)]
    assert record["costs"]["bops"] == pytest.approx(np.sum(elements * np.prod(bits, axis=1)) / 1e6)


# ---- Again, and with other trials


@pytest.fixture
def copy(finished_sweep, tmp_path):
    """(config file, output folder): a finished run that a test may change."""
    shutil.copytree(finished_sweep, tmp_path / "out", copy_function=shutil.copy2)
    return write_small(tmp_path), tmp_path / "out"


def test_a_second_run_does_nothing_and_changes_nothing(copy, capsys):
    config, output = copy
    kept = ("*/trials/*/*", "*/float/**/*", "*/checkpoints/**/*", "*/sensitivity/*", "*/*.json", "*/sweep.yaml")
    before, report = state_of(output, *kept), state_of(output, "*/*.csv", "*/front.png")
    assert sweep(config, output) == 0
    assert "0 trials run, 7 found done, 0 failed" in capsys.readouterr().out
    assert state_of(output, *kept) == before
    # The report is drawn again, from the same records: the same bytes.
    assert {file: data for file, (data, _) in state_of(output, "*/*.csv", "*/front.png").items()} == {
        file: data for file, (data, _) in report.items()
    }


def test_a_comment_in_the_config_changes_nothing(copy, capsys):
    config, output = copy
    config.write_text("# a thought\n" + SMALL)
    assert sweep(config, output) == 0
    assert "0 trials run, 7 found done" in capsys.readouterr().out


def test_a_deleted_or_damaged_record_is_run_again_and_no_other(copy, capsys):
    config, output = copy
    complete = {label: outcome_of(record) for label, record in stored(output).items()}
    (deleted,) = output.glob("*/trials/*ptq-lsq-w4a4*/result.json")
    deleted.unlink()
    (damaged,) = output.glob("*/trials/*random*/result.json")
    damaged.write_text(damaged.read_text().replace('"seed": 0', '"seed": 1', 1))
    others = {file: state for file, state in state_of(output, "*/trials/*/result.json").items() if file != damaged}
    assert sweep(config, output) == 0
    assert "2 trials run, 5 found done, 0 failed" in capsys.readouterr().out
    assert {file: state_of(output, "*/trials/*/result.json")[file] for file in others} == others
    assert {label: outcome_of(record) for label, record in stored(output).items()} == complete


def test_per_example_scores_that_were_lost_are_found_again(copy, capsys):
    config, output = copy
    (lost,) = output.glob("*/trials/*float*/examples.npz")
    lost.unlink()
    assert sweep(config, output) == 0
    assert "1 trials run, 6 found done" in capsys.readouterr().out
    assert lost.is_file()


def test_more_trials_are_a_run_of_their_own_beside_the_old_one(copy, capsys):
    # The folder's name holds a hash of all trials of the sweep, so that a folder is one experiment. The old one stays
    # as it is; its float models and its records are not used for the new one.
    config, output = copy
    before = state_of(output, "**/*")
    config.write_text(SMALL + "    - {flow: ptq, allocation: {bits: [8, 8]}}\n")
    assert sweep(config, output, "qat.epochs=0") == 0
    assert "8 trials run, 0 found done" in capsys.readouterr().out
    assert len(list(output.iterdir())) == 2
    assert {file: state for file, state in state_of(output, "**/*").items() if file in before} == before


def test_configs_of_one_name_do_not_mix(tmp_path, capsys):
    config, output = write_small(tmp_path), tmp_path / "out"
    assert sweep(config, output, *ONE) == 0
    assert sweep(config, output, *ONE, "calibration.examples=63") == 0
    assert len(list(output.iterdir())) == 2
    assert capsys.readouterr().out.count("1 trials run, 0 found done") == 2
    for folder in output.iterdir():
        (record,) = find_run(output, folder.name).records().records
        kept = json.loads((folder / "resolved.json").read_text())["sweep"]
        examples = kept["settings"].get("calibration.examples", kept["base"]["calibration"]["examples"])
        assert record.config["calibration"]["examples"] == examples


def test_trials_that_are_added_join_the_run(tmp_path, capsys):
    """Only they run; the float model that is there is used; and the folder keeps the last text of the config."""
    config, output = write_small(tmp_path), tmp_path / "out"
    first = "sweep.list=[{flow: float}, {flow: ptq, allocation: {bits: [4, 4]}}]"
    assert sweep(config, output, "float.epochs=1", first) == 0
    (folder,) = output.iterdir()
    kept = {path: path.read_bytes() for path in folder.glob("trials/*/result.json")}
    config.write_text(SMALL + "# more\n")
    capsys.readouterr()
    more = (
        "sweep.list=[{flow: ptq, allocation: {bits: [2, 2]}}, {flow: float}, {flow: ptq, allocation: {bits: [4, 4]}}]"
    )
    assert sweep(config, output, "float.epochs=1", more) == 0
    told = capsys.readouterr().out
    assert "1 trials run, 2 found done, 0 failed" in told
    assert "float training" not in told
    assert list(output.iterdir()) == [folder]
    assert {path: path.read_bytes() for path in kept} == kept
    assert (folder / "sweep.yaml").read_text().endswith("# more\n")
    assert len(stored(output)) == 3


def test_a_run_that_is_being_written_is_refused(tmp_path, capsys):
    config, output = write_small(tmp_path), tmp_path / "out"
    assert sweep(config, output, *ONE) == 0
    (folder,) = output.iterdir()
    with locked(folder):
        assert sweep(config, output, *ONE) == 2
    assert f"process {os.getpid()} on " in capsys.readouterr().err


def test_seeds_are_trials_of_their_own(tmp_path):
    values = ("sweep.list=[{flow: float}]", "sweep.grid={seed: [0, 1, 4294967295]}")
    assert sweep(write_small(tmp_path), tmp_path / "out", *values) == 0
    records = stored(tmp_path / "out")
    assert set(records) == {"float-seed0", "float-seed1", "float-seed4294967295"}
    assert len({record["metrics"]["test"]["loss"] for record in records.values()}) == 3
