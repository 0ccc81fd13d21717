from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT
from small_sweep import settings

from qresearch.cli import main
from qresearch.config import expand, load
from qresearch.results import find_run
from qresearch.sweep.assemble import known_names

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def note(path):
    """The comment at the top of a config, as {entry: text}; lines that continue an entry are indented."""
    entries: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        begins = re.match(r"# (\w+): +(.*)", line)
        if begins:
            entries[begins[1]] = begins[2]
        else:
            last = next(reversed(entries))
            entries[last] += " " + line.lstrip("# ")
    return entries


def test_there_are_configs():
    assert ROOT / "configs" / "quickstart.yaml" in CONFIGS


@every_config
def test_a_config_is_a_lab_note(path):
    entries = note(path)
    assert "Paper" in entries or "Papers" in entries
    assert {"Question", "Command", "Expected"} <= set(entries)
    assert "?" in entries["Question"]
    assert re.search(r"https?://", entries.get("Paper", "") + entries.get("Papers", ""))
    assert f"configs/{path.name}" in entries["Command"]
    assert re.search(r"\d", entries["Expected"]), "an expected number"


@every_config
def test_a_config_loads_with_known_names_only(path):
    configs = expand(load(path), known_names())
    assert configs
    assert {config.name for config in configs} == {path.stem.replace("_", "-")}
    assert {config.output for config in configs} == {"results"}, "where results go is the user's choice"


@every_config
def test_a_config_is_planned(path, data_folder, capsys):
    data_folder(expand(load(path))[0])
    assert main(["check", str(path)]) == 0
    assert re.search(r": fine, \d+ trials", capsys.readouterr().out)


def kinds_of_trials(sweep):
    """One trial of every kind in a sweep's list: each flow, with given bits and with a budget."""
    trials = {}
    for trial in sweep.get("list") or []:
        allocation = trial.get("allocation") or {}
        trials.setdefault((trial.get("flow"), "budget" in allocation), trial)
    return list(trials.values())


# Networks of ordinary size, and every quantizer, compile for long: `pytest -m slow`.
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[] if path.stem == "quickstart" else pytest.mark.slow) for path in CONFIGS],
)
def test_a_config_runs(path, data_folder, tmp_path, capsys):
    """One seed and one trial of every kind, with two steps of training and a handful of examples."""
    first, sweep = expand(load(path))[0], load(path).document.values["sweep"]
    data_folder(first)
    values = [f"output={tmp_path / 'out'}", "calibration.examples=8", "sensitivity.examples=8"]
    values += ["evaluate.batch_size=8", "evaluate.examples=8"]
    short = ("epochs=1", "warmup_epochs=0", "batch_size=500", "examples=1000")
    values += [f"{phase}.{key}" for phase in ("float", "search", "qat") for key in short]
    values += [f"sweep.list={json.dumps(kinds_of_trials(sweep))}"]
    values += ["sweep.grid.seed=[0]"] if "seed" in (sweep.get("grid") or {}) else []
    trials = len(expand(load(path, values)))
    assert main(["sweep", str(path), *settings("engine.name=inline", *values)]) == 0
    assert f"{trials} trials run, 0 found done, 0 failed" in capsys.readouterr().out
    run = find_run(tmp_path / "out", first.name)
    records, invalid = run.records()
    assert (len(records), invalid) == (trials, ())
    assert (run.path / "front.png").stat().st_size
