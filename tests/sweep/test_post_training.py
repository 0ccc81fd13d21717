"""Post-training methods and selective quantization in a sweep, and the benchmark command, on digits."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_sweep import settings, sweep, write_small

from qresearch.cli import main
from qresearch.config import KeepConfig
from qresearch.errors import ConfigError
from qresearch.sensitivities import Sensitivity
from qresearch.sweep.keep import keep_sensitive

TRIALS = """\
name: methods
data: {name: digits}
model: {name: mlp}
float: {epochs: 5, batch_size: 128, learning_rate: 3e-3}
quantize:
  weight: {quantizer: minmax, granularity: per_channel, range: minmax}
  input: {quantizer: minmax, granularity: per_tensor, range: minmax}
  menu: [[2, 8], [4, 8], [8, 8], [4, 4]]
calibration: {examples: 64}
sensitivity: {examples: 100}
evaluate: {batch_size: 100}
flow: ptq
allocation: {bits: [2, 8]}
"""
SWEEP = """\
sweep:
  list:
    - {flow: float}
    - {ptq: []}
    - {ptq: [gptq, bias_correction]}
    - {ptq: [{name: adaround, options: {iterations: 200}}]}
    - {ptq: [reestimate_batchnorm]}
    - {quantize.keep: {first: true, most_sensitive: 1, option: [8, 8]}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    # 3: re-estimation fails, as an MLP has no BatchNorm; the others go on.
    assert sweep(write_small(folder, TRIALS + SWEEP), folder / "out") == 3
    return folder / "out"


def stored(output: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in output.glob("*/trials/*/result.json")]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def by_methods(run: Path) -> dict[tuple[str, ...], dict]:
    records = [r for r in stored(run) if r["config"]["allocation"]["bits"] == [2, 8]]
    return {
        tuple(m["name"] for m in r["config"]["ptq"]): r for r in records if not r["config"]["quantize"]["keep"]["first"]
    }


def test_methods_give_score_back(run):
    found = {name: record["metrics"] for name, record in by_methods(run).items() if record["status"] == "done"}
    plain = found.pop(())["validation"]["loss"]
    assert len(found) == 2
    for metrics in found.values():
        assert metrics["validation"]["loss"] < 0.8 * plain


def test_a_method_that_does_not_fit_the_model_fails_its_trial_alone(run):
    record = by_methods(run)["reestimate_batchnorm",]
    assert record["status"] == "failed"
    assert record["reason"].startswith("reestimate_batchnorm: the model has no BatchNorm statistics")


def test_labels_and_the_front_name_the_methods(run):
    (folder,) = run.iterdir()
    main(["report", str(folder)])
    rows = table(folder / "front.csv")
    assert {"-", "gptq+bias_correction", "adaround(iterations=200)"} == {row["methods"] for row in rows}
    labels = {record["label"] for record in stored(run)}
    assert "ptq-minmax-gptq-bias_correction-w2a8-seed0" in labels


def test_the_weights_that_methods_found_are_kept(run):
    (folder,) = run.iterdir()
    record = by_methods(run)["gptq", "bias_correction"]
    with ocp.StandardCheckpointer() as checkpointer:
        kept = checkpointer.restore((folder / "checkpoints" / record["key"][:16]).absolute())
    for own in kept["qparams"].values():
        assert {"kernel", "shift"} <= set(own)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


def test_the_first_and_the_most_sensitive_layer_keep_their_bits(run):
    (record,) = [r for r in stored(run) if r["config"]["quantize"]["keep"]["first"]]
    bits = record["allocation"]["bits"]
    assert bits[0] == [8, 8]
    assert sorted(bits[1:]) == [[2, 8]] * (len(bits) - 2) + [[8, 8]]
    assert "pinned" in record["allocation"]["treatment"]


def test_the_most_sensitive_are_ranked_among_the_free():
    loss = np.asarray([[9.0, np.inf], [0.1, 0.5], [0.3, 0.2], [0.2, 0.9]])  # the first is pinned to its one option
    table = Sensitivity(loss, loss, ((2, 8), (4, 8)), 0.0)
    bits = np.full((4, 2), 2.0)
    assert keep_sensitive(bits, table, (2, 8), KeepConfig(most_sensitive=1)).tolist() == [
        [2, 2],
        [2, 2],
        [8, 8],
        [2, 2],
    ]
    assert keep_sensitive(bits, table, (4, 8), KeepConfig(most_sensitive=2)).tolist() == [
        [2, 2],
        [8, 8],
        [2, 2],
        [8, 8],
    ]
    assert (keep_sensitive(bits, table, (2, 8), KeepConfig(most_sensitive=9))[1:] == 8).all()
    with pytest.raises(ConfigError, match=r"allocation.bits \[3, 8\] is not in the menu"):
        keep_sensitive(bits, table, (3, 8), KeepConfig(most_sensitive=1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ptq=[gptqq]", "ptq.0: unknown name \"gptqq\"; did you mean 'gptq'"),
        ("ptq=[{name: gptq, options: {damp: 1}}]", "method 'gptq' has no option 'damp'; did you mean 'damping'"),
        ("ptq=[{name: prune, options: {sparsity: 2.0}}]", "takes a number from 0 to 0.99, got 2"),
        ("quantize.keep.most_sensitive=-1", "quantize.keep.most_sensitive: expected a whole number >= 0"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_nothing_starts(tmp_path, capsys, value, message):
    assert sweep(write_small(tmp_path, TRIALS + "sweep: null\n"), tmp_path / "out", value) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def benchmark(folder: Path, *arguments: str) -> int:
    config = write_small(folder, TRIALS + "sweep: null\n")
    return main(["benchmark", str(config), *settings(f"output={folder / 'out'}", "ptq=[gptq]"), *arguments])


def test_the_benchmark_is_a_table_of_drops_with_a_verdict(tmp_path, capsys):
    assert benchmark(tmp_path, "--max-drop", "100") == 0
    printed = capsys.readouterr().out
    (folder,) = (tmp_path / "out").iterdir()
    rows = table(folder / "benchmark.csv")
    assert [row["variant"] for row in rows] == ["FP32", "INT8", "INT4", "mixed"]
    records = {r["flow"] + json.dumps(r["config"]["allocation"]["bits"]): r for r in stored(tmp_path / "out")}
    scores = [records[key]["metrics"]["test"]["score"] for key in ("floatnull", "ptq[8, 8]", "ptq[4, 4]")]
    for row, score in zip(rows, scores):
        assert float(row["score"]) == score
        assert float(row["drop_hundredths"]) == pytest.approx(100 * (scores[0] - score))
    # 128, 64 and 10 channels with a scale each, and three scales of inputs: 205 of 32 bits.
    weights = 64 * 128 + 128 * 64 + 64 * 10
    expected = [1, *(32 * weights / (bits * weights + 205 * 32) for bits in (8, 4))]
    assert [float(row["compression"]) for row in rows[:3]] == pytest.approx(expected)
    assert [row["passes"] for row in rows] == ["", "1", "1", "1"]
    assert "0 of 3 rows drop by more than 100" in printed
    # Nothing is run again, and a drop above the limit is an exit status of its own.
    worst = max(float(row["drop_hundredths"]) for row in rows[1:])
    assert benchmark(tmp_path, "--max-drop", str(worst - 0.01)) == 4
    assert "0 trials run, 4 found done" in (printed := capsys.readouterr().out)
    assert "FAIL" in printed
    assert benchmark(tmp_path, "--max-drop", str(worst)) == 0
