"""One sweep through every engine: the same numbers, bit for bit; resumed by one what another began."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from small_sweep import outcome_of, stored, sweep, write_small

from qresearch.cli import main
from qresearch.engines import ENGINES
from qresearch.results import find_run
from qresearch.results.ledger import read_ledger

OPTIONS = {
    "local": ("engine.workers=2",),
    "dask": ("engine.workers=2",),
    "slurm": ("engine.workers=2", "engine.options={cluster: local}"),
}


def assert_same(output, expected):
    found, wanted = stored(output), stored(expected)
    assert set(found) == set(wanted)
    for label, record in wanted.items():
        assert outcome_of(found[label]) == outcome_of(record), label


# Workers start JAX, and compile what this process has compiled already: one engine in the fast suite is enough.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "local")) for name in ENGINES if name != "inline"]
)
def test_engines_agree_bit_for_bit(name, finished_sweep, tmp_path, capsys):
    config = write_small(tmp_path)
    assert sweep(config, tmp_path / "out", f"engine.name={name}", *OPTIONS[name]) == 0
    assert "7 trials run, 0 found done, 0 failed" in capsys.readouterr().out
    assert_same(tmp_path / "out", finished_sweep)
    rows = read_ledger(find_run(tmp_path / "out", "small").path)
    assert {row.state for row in rows} == {"done"}
    assert {row.attempts for row in rows} == {1}


def test_resume_needs_the_run_alone(finished_sweep, tmp_path, capsys, monkeypatch):
    output = shutil.copytree(finished_sweep, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for label in ("qat", "float"):
        (victim,) = (
            path for path in output.glob(f"*/trials/*-{label}-*/result.json") if "w2a2" in str(path) or label == "float"
        )
        victim.unlink()
    (run,) = output.iterdir()
    kept = next(path for path in output.glob("*/trials/*-qat-*/result.json"))
    left = run / "training" / json.loads(kept.read_text())["key"][:16]  # by a worker that was killed at its very end
    left.mkdir(parents=True)
    assert main(["resume", "small", "--output", str(output)]) == 0
    assert not left.exists()
    assert "2 trials run, 5 found done, 0 failed" in capsys.readouterr().out
    assert_same(output, finished_sweep)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("settings torn", r"settings.json: is damaged; give the config again"),
        ("config altered", r"its config and settings make another run"),
        ("renamed", r"its config and settings make another run"),
    ],
)
def test_a_run_that_cannot_be_resumed_is_one_line(finished_sweep, tmp_path, capsys, spoil, message):
    output = shutil.copytree(finished_sweep, tmp_path / "out")
    (run,) = output.iterdir()
    if spoil == "settings torn":
        (run / "settings.json").write_text("[")
    elif spoil == "config altered":
        (run / "sweep.yaml").write_text((run / "sweep.yaml").read_text().replace("epochs: 8", "epochs: 9"))
    else:
        run = run.rename(output / "other")
    assert main(["resume", str(run)]) == 2
    text = capsys.readouterr().err
    assert re.search(message, text)
    assert len(text.splitlines()) == 1
    assert list(output.iterdir()) == [run]


def test_a_plan_says_what_a_sweep_would_do(finished_sweep, tmp_path, capsys):
    config = write_small(tmp_path)
    arguments = ["plan", str(config), "--engine", "local", "--workers", "2", "--set"]
    assert main([*arguments, f"output={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    assert "trials    7 (1 float, 3 ptq, 3 qat), 0 done" in text
    assert "mlp on digits, lsq: 7 trials (1 float, 3 ptq, 3 qat) of 1 float models, 1 to be trained" in text
    assert "programs  7, 2 of float training, 1 of calibration, 1 of evaluation, 1 of sensitivity, 2 of QAT" in text
    assert "pieces    1 of float training, 7 of trials, for 2 at a time" in text
    assert "time      not known: no record of such trials" in text
    assert not (tmp_path / "out").exists()
    assert main([*arguments, f"output={finished_sweep}"]) == 0
    text = capsys.readouterr().out
    assert "7 done" in text
    assert "time      nothing to do" in text
    assert main([*arguments, f"output={finished_sweep}", "--set", "name=again", "--set", "seed=1"]) == 0
    assert re.search(
        r"time      \d+ s and compilation and searches, as records of such trials took\n", capsys.readouterr().out
    )


def test_an_engine_that_is_not_there_is_one_line(tmp_path, capsys):
    config = write_small(tmp_path)
    assert main(["sweep", str(config), "--engine", "loca"]) == 2
    assert "engine.name: unknown engine 'loca'; did you mean 'local'" in capsys.readouterr().err
    assert main(["sweep", str(config), "--workers", "none"]) == 2
    assert "engine.workers: expected a whole number" in capsys.readouterr().err
