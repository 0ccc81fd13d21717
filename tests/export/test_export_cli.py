"""The command ``export`` on a small run, and what both commands say of what a user can mend."""

from __future__ import annotations

import csv
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_sweep import one_line, sweep, write_small
from trial_commands import TRIAL, export, hide, verify

from qresearch.export.formats import FORMATS
from qresearch.export.frozen_file import load_frozen
from qresearch.export.onnx import run_onnx, session
from qresearch.export.stablehlo import load_program, run_model
from qresearch.results import find_run
from qresearch.sweep.restore import find_trial, restore


@pytest.fixture(scope="module")
def output(finished_sweep, tmp_path_factory):
    """A copy of the finished sweep, which exports are written into."""
    return shutil.copytree(finished_sweep, tmp_path_factory.mktemp("exports") / "out")


@pytest.fixture(scope="module")
def restored(output):
    run = find_run(output, "small")
    return restore(run, find_trial(run, TRIAL))


@pytest.fixture
def simulated(restored):
    """Prepared inputs and what the trial's model gives for them."""
    x = jnp.asarray(restored.setup.data.prepare(restored.setup.data.test.inputs[:30]))
    return x, np.asarray(restored.model.apply(restored.params, restored.qparams, x, jnp.asarray(restored.bits)))


def exported(output, capsys, format, *arguments, trial=TRIAL):
    """The path of the file, and what is said of it."""
    assert export(output, "--format", format, "--trial", trial, *arguments) == 0
    first, second, *notes = capsys.readouterr().out.splitlines()
    (record,) = [r for r in find_run(output, "small").records().records if r.label == trial]
    assert first == f"trial   {record.key[:8]} {trial}"
    path = next(
        (output / find_run(output, "small").path.name / "exports").glob(f"{record.key[:8]}*{FORMATS[format].suffix}")
    )
    assert second == f"file    {path}, {path.stat().st_size:,} bytes"
    return path, notes


# ---- Formats


def test_onnx(output, simulated, capsys):
    path, notes = exported(output, capsys, "onnx")
    assert any("session.x64quantprecision=1" in note for note in notes)
    x, expected = simulated
    for optimized in (False, True):
        np.testing.assert_allclose(run_onnx(session(path, optimized), x)[0], expected, atol=1e-4)


@pytest.mark.parametrize("batch", [None, 30])
def test_stablehlo(output, simulated, restored, capsys, batch):
    path, notes = exported(output, capsys, "stablehlo", *([] if batch is None else ["--batch", str(batch)]))
    assert notes[0] == f"note    platforms: cpu, cuda, tpu; batch: {batch or 'any'}"
    x, expected = simulated
    program = load_program(path)
    assert program.facts["trial"] == restored.record.key
    assert program.facts["inputs"] == [f"[0]: float32[{batch or 'batch'},8,8,1]"]
    np.testing.assert_allclose(run_model(program, x), expected, atol=1e-5)


def test_safetensors(output, simulated, restored, capsys):
    path, notes = exported(output, capsys, "safetensors")
    assert notes == []
    x, expected = simulated
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), restored.params)
    np.testing.assert_allclose(load_frozen(path, restored.model.fn, shapes, x).apply(x), expected, atol=1e-5)
    assert path.stat().st_size < 0.2 * 4 * 17226  # of the float32 parameters, 4 bits each and a header


def test_fixed_point_requantization(output, simulated, restored, capsys):
    path, _ = exported(output, capsys, "safetensors", "--requantize", "fixed")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), restored.params)
    x, expected = simulated
    frozen = load_frozen(path, restored.model.fn, shapes, x)
    assert frozen.requantize == "fixed"
    assert np.mean(np.argmax(frozen.apply(x), -1) == np.argmax(expected, -1)) > 0.9


def test_qwix(output, restored, capsys):
    path, notes = exported(output, capsys, "qwix")
    content = json.loads(path.read_text())
    assert [rule["weight_qtype"] for rule in content["rules"]] == ["int4"] * 3
    assert content["trial"] == restored.record.key
    assert len(notes) == len(content["differences"])
    for note, difference in zip(notes, content["differences"]):
        assert note == "note    {layer} {operand}: {what}".format(**difference)


def test_json_and_csv(output, restored, capsys):
    path, _ = exported(output, capsys, "json")
    content = json.loads(path.read_text())
    assert [layer["weight"]["bits"] for layer in content["layers"]] == [4, 4, 4]
    assert content["costs"] == restored.record.costs
    path, _ = exported(output, capsys, "csv")
    with path.open() as file:
        assert [row["weight_bits"] for row in csv.DictReader(file)] == ["4", "4", "4"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_float_trial_leaves_in_every_format(output, capsys, format):
    exported(output, capsys, format, trial="float-seed0")


def test_a_path_and_seven_bits_where_there_are_eight(tmp_path, capsys):
    assert sweep(write_small(tmp_path), tmp_path / "out", "sweep=null") == 0
    capsys.readouterr()
    path = tmp_path / "new" / "bits.csv"
    for arguments, expected in (((), "8"), (("--reduce-range",), "7")):
        assert export(tmp_path / "out", "--format", "csv", "--out", str(path), *arguments) == 0
        with path.open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["weight_bits"], row["input_bits"]) for row in rows] == [(expected, "8")] * 3


# ---- What a user can mend


@pytest.mark.parametrize("command", [export, verify])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "qat"], "error: --trial 'qat' means 3 trials: "),
        (["--trial", "qat-lsq-w3"], "error: no finished trial 'qat-lsq-w3' in "),
        (["--output", "nowhere"], "error: no run 'small' in nowhere; it holds no runs"),
    ],
)
def test_which_trial_is_one_line(output, capsys, command, arguments, message):
    needed = ["--format", "csv"] if command is export else []
    assert command(output, *needed, *arguments) == 2
    assert one_line(capsys.readouterr().err).startswith(message)


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("safetensors", "safetensors")])
def test_a_missing_extra_is_one_line(output, monkeypatch, capsys, format, package):
    hide(monkeypatch, package)
    assert export(output, "--format", format, "--trial", TRIAL) == 2
    assert "pip install 'qresearch[export]'" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("command", [export, verify])
def test_a_damaged_checkpoint_is_one_line(finished_sweep, tmp_path, capsys, command):
    output = shutil.copytree(finished_sweep, tmp_path / "out")
    run = find_run(output, "small")
    path = run.path / "checkpoints" / find_trial(run, TRIAL).key[:16]
    (path / "sha256.json").write_text("{}")
    assert command(output, *(["--format", "csv"] if command is export else []), "--trial", TRIAL) == 2
    assert f"{path.name}: not a complete checkpoint of this model" in one_line(capsys.readouterr().err)
    assert not (run.path / "exports").exists()
    assert not (run.path / "verify.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "error: --format: unknown format 'tflite'; known: csv, json, onnx"),
        (["--format", "csv", "--batch", "4"], "error: --batch: a file of format 'csv' is of no batch size"),
        (["--format", "csv", "--reduce-range"], f"error: trial {TRIAL}: QAT trained its weights for the widths"),
    ],
)
def test_what_cannot_be_exported_is_said(output, capsys, arguments, message):
    assert export(output, "--trial", TRIAL, *arguments) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("batch", ["0", "-1", "many"])
def test_a_batch_is_a_number(output, capsys, batch):
    with pytest.raises(SystemExit):
        export(output, "--format", "onnx", "--batch", batch)
    assert f"--batch: expected a whole number from 1, got {batch!r}" in capsys.readouterr().err


@pytest.mark.parametrize("bound", ["-0.1", "1.5", "nan", "few"])
def test_a_bound_is_a_share(output, capsys, bound):
    with pytest.raises(SystemExit):
        verify(output, f"--bound={bound}")
    assert f"--bound: expected a number from 0 to 1, got {bound!r}" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(output, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert export(output, "--format", "csv", "--trial", TRIAL, "--out", str(tmp_path / "file" / "x.csv")) == 2
    assert "cannot make the folder" in one_line(capsys.readouterr().err)
