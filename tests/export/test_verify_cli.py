"""The command ``verify`` on a small run, and on tasks whose outputs are no class logits."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from small_sweep import SMALL, sweep, write_small
from tiny_tasks import TINY
from trial_commands import TRIAL, hide, verify

import qresearch.export.formats
from qresearch.data import DATASETS
from qresearch.export.onnx import run_onnx
from qresearch.frozen import Frozen
from qresearch.models import MODELS
from qresearch.results import find_run
from qresearch.results.sealed import read_sealed
from qresearch.sweep.restore import find_trial, restore
from qresearch.tasks import TASKS

EXECUTIONS = ("simulated", "integer", "codes", "dequantized", "stablehlo", "onnx, not optimized", "onnx, optimized")


@pytest.fixture(scope="module")
def output(finished_sweep, tmp_path_factory):
    """A copy of the finished sweep, which exports are written into."""
    return shutil.copytree(finished_sweep, tmp_path_factory.mktemp("exports") / "out")


@pytest.fixture(scope="module")
def restored(output):
    run = find_run(output, "small")
    return restore(run, find_trial(run, TRIAL))


def test_verify_compares_all_executions(output, restored, capsys):
    assert verify(output, "--trial", TRIAL) == 0
    text = capsys.readouterr().out
    run = find_run(output, "small")
    content = read_sealed(run.path / "verify.json")
    assert text.splitlines()[0] == f"trial   {restored.record.key[:8]} {TRIAL}"
    assert text.splitlines()[-1] == str(run.path / "verify.json")
    assert tuple(row["name"] for row in content["executions"]) == EXECUTIONS
    assert (content["trial"], content["examples"], content["problems"]) == (restored.record.key, 100, [])
    unlike = {row["name"]: row["examples_unlike_integer"] for row in content["executions"]}
    assert unlike["codes"] == unlike["stablehlo"] == 0
    assert "stablehlo and integer: equal in every bit" in text
    for row in content["executions"]:
        assert row["name"] in text
        assert row["equal_predictions"] >= 0.995
        assert row["largest_difference"] < 1e-4 * content["largest_output"]
    # Of the first 100 examples, as the record has them.
    examples = run.examples(restored.record)
    assert content["executions"][0]["score"] == pytest.approx(examples["score"][:100].mean())
    sizes = {row["name"]: row["size_bytes"] for row in content["executions"]}
    assert sizes["simulated"] == 4 * 17226
    assert sizes["integer"] == sizes["codes"] < 0.2 * sizes["simulated"]


def test_an_export_beyond_the_bound_is_a_status_of_its_own(output, monkeypatch, capsys):
    def turned(running, x):
        return [np.roll(outputs, 1, axis=-1) for outputs in run_onnx(running, x)]

    monkeypatch.setattr(qresearch.export.formats, "run_onnx", turned)
    assert verify(output, "--trial", TRIAL) == 5
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("differs")]
    assert len(problems) == 2  # without and with optimizations
    assert "onnx, optimized: " in problems[1]
    assert "of its predictions are not those of the simulation; the bound is 0.50%" in problems[1]
    assert read_sealed(find_run(output, "small").path / "verify.json")["problems"]
    assert verify(output, "--trial", TRIAL, "--bound", "1") == 0


def test_one_bit_between_codes_and_integers_is_too_much(output, monkeypatch, capsys):
    apply = Frozen.apply

    def other(frozen, x, execution="integer"):
        outputs = np.array(apply(frozen, x, execution))
        if execution == "codes":
            outputs[0, 0] = np.nextafter(outputs[0, 0], np.float32(np.inf))
        return outputs

    monkeypatch.setattr(Frozen, "apply", other)
    assert verify(output, "--trial", TRIAL, "--bound", "1") == 5
    assert "differs  codes and integer differ in 1 of 100 examples" in capsys.readouterr().out


def test_without_the_extra_the_rest_is_compared(output, monkeypatch, capsys):
    hide(monkeypatch, "onnx", "safetensors")
    assert verify(output, "--trial", TRIAL) == 0
    text = capsys.readouterr().out
    names = [row["name"] for row in read_sealed(find_run(output, "small").path / "verify.json")["executions"]]
    assert tuple(names) == EXECUTIONS[:5]
    missing = [line for line in text.splitlines() if line.startswith("not run")]
    assert len(missing) == 2
    assert all("pip install 'qresearch[export]'" in line for line in missing)


TASK_SWEEP = SMALL.partition("sweep:")[0].replace("data: {name: digits}\nmodel: {name: mlp}\n", "").replace("100", "50")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["language_modelling", "detection"])
def test_outputs_that_are_no_class_logits(task, tmp_path, monkeypatch):
    name = f"small_{task}"  # a data set is loaded once by its name
    monkeypatch.setitem(DATASETS, name, TINY[task].data)
    monkeypatch.setitem(MODELS, name, TINY[task].model)
    text = f"task: {task}\ndata: {{name: {name}}}\nmodel: {{name: {name}}}\n{TASK_SWEEP}"
    assert sweep(write_small(tmp_path, text), tmp_path / "out") == 0
    assert verify(tmp_path / "out") == 0
    content = read_sealed(find_run(tmp_path / "out", "small").path / "verify.json")
    # ONNX has no operator for some look-ups: then it is said, and the others are compared.
    refused = [line.partition(":")[0] for line in content["not_run"]]
    assert refused in ([], ["onnx"])
    assert tuple(row["name"] for row in content["executions"]) == EXECUTIONS[: 5 if refused else 7]
    assert content["score"]["name"] == TASKS[task].score_name
