"""Sensitivities, allocators and refinement side by side in one sweep."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil

import numpy as np
import pytest
from small_sweep import settings, stored, write_small

from qresearch.cli import main
from qresearch.results.draws import load_draws
from qresearch.search import SEARCHES
from qresearch.sensitivities import SENSITIVITIES

MIXED = {"flow": "ptq", "allocation.budget": 3.5, "allocation.bits": None}
BAYES = {"measurements": 12, "rounds": 1, "warmup": 60, "draws": 20}  # too few draws: a remedy is due
TRIALS = [
    *({**MIXED, "allocation.allocator": "exact", "sensitivity.method": name} for name in SENSITIVITIES),
    {**MIXED, "allocation.allocator": "exact", "allocation.refine": 2},
    {**MIXED, "allocation.allocator": "nsga2", "allocation.options": {"population": 6, "generations": 2}},
    {**MIXED, "allocation.allocator": "milp"},
    {**MIXED, "allocation.allocator": "gibbs", "allocation.options": {"draws": 8, "joint": 4}},
    {**MIXED, "allocation.allocator": "bayesian", "allocation.options": BAYES},
    {**MIXED, "allocation.allocator": "dq", "search": {"epochs": 1, "batch_size": 128}},  # others: tests/search
]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    values = ["sensitivity.examples=60", "evaluate.batch_size=60", "quantize.menu=[[2,2],[4,4],[8,8]]"]
    config = write_small(folder)
    values += ["report.reference=[8,0.1]"]
    values += [f"sweep={json.dumps({'list': TRIALS})}", f"output={folder / 'out'}"]
    with (folder / "stdout.txt").open("w") as stream, contextlib.redirect_stdout(stream):
        assert main(["sweep", str(config), *settings(*values)]) == 0
    return folder / "out"


def test_every_search_has_its_own_label_and_keeps_the_budget(searched):
    records = stored(searched)
    assert len(records) == len(TRIALS)
    assert {
        "ptq-lsq-exact-3.5bits-seed0",
        "ptq-lsq-exact-hawq_v2-3.5bits-seed0",
        "ptq-lsq-exact-refined-3.5bits-seed0",
        "ptq-lsq-nsga2-generations=2-population=6-3.5bits-seed0",
    } < set(records)
    for record in records.values():
        assert record["costs"]["average_bits"] <= 3.5


def test_posteriors_are_recorded_and_their_draws_kept(searched):
    found = {record["allocation"]["allocator"].split()[0]: record for record in stored(searched).values()}
    for name in ("gibbs", "bayesian"):
        posterior = found[name]["metrics"]["search"]["posterior"]
        assert set(posterior["probabilities"]) == set(found[name]["allocation"]["layers"])
        for row in posterior["probabilities"].values():
            assert set(row) == {"W2A2", "W4A4", "W8A8"}
            assert sum(row.values()) == pytest.approx(1)
    assert list(posterior["loss"]) == ["25 %", "5 %", "50 %", "75 %", "95 %"]  # as JSON sorts them
    assert posterior["diagnostics"]["samples"] < 100
    (path,) = searched.glob("*/searches/*.npz")
    assert load_draws(path)["posterior"]["log_sensitivity"].shape[:2] == (2, 20)
    names = {file.name for file in next(searched.glob("*/report.html")).parent.iterdir()}
    assert {"bits.png", "bands.png", "probabilities.csv"} <= names


def test_a_poor_posterior_is_a_line_that_names_the_remedy(searched):
    lines = (searched.parent / "stdout.txt").read_text()
    assert re.search(r"warning: ptq-lsq-bayesian-.*: \d+ effective draws, fewer than 100: raise draws", lines)


def test_sensitivities_are_kept_by_method(searched):
    found = {path.stem.split("-")[1] for path in searched.glob("*/sensitivity/*.json")}
    assert found == set(SENSITIVITIES)


def test_refinement_and_integer_programming_agree_with_the_exact_answer(searched):
    records = stored(searched)
    exact, refined, milp = (
        records[f"ptq-lsq-{name}-3.5bits-seed0"]["allocation"]["bits"] for name in ("exact", "exact-refined", "milp")
    )
    assert milp == exact
    assert np.shape(refined) == np.shape(exact)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["allocation.allocator=bayesian", "allocation.options.measurements=5"],
            "too few measurements: 5 for 1 budget",
        ),
        (["sensitivity.method=fishr"], r"sensitivity\.method: unknown name \"fishr\"; did you mean 'fisher'"),
        (["sensitivity.options.probe=3"], r"sensitivity: method 'loss_increase' has no option 'probe'; it has none"),
        (["allocation.options.sample=3"], r"allocation: allocator 'exact' has no option 'sample'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, values, message):
    trial = ["flow=ptq", "sweep=null", "allocation.allocator=exact", "allocation.budget=4", "allocation.bits=null"]
    status = main(["sweep", str(write_small(tmp_path)), *settings(f"output={tmp_path / 'out'}", *trial, *values)])
    assert status == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()  # said before anything is computed


def test_the_report_says_how_far_every_sensitivity_adds_up(searched, capsys):
    (run,) = searched.iterdir()
    assert main(["show", str(run)]) == 0
    text, page = capsys.readouterr().out, (run / "report.html").read_text()
    assert "random joint allocations" in text
    assert "Additivity" in page
    for name in SENSITIVITIES:
        assert f"-{name} " in text
        assert f"-{name}<" in page


def test_a_damaged_sensitivity_file_is_named(searched, tmp_path, capsys):
    shutil.copytree(searched, tmp_path / "out")
    path = next((tmp_path / "out").glob("*/sensitivity/*-kl-*.json"))
    path.write_text(path.read_text()[:100])
    assert main(["show", str(path.parent.parent)]) == 2
    assert re.search(rf"{path.name}: is damaged .*; delete it", capsys.readouterr().err)


def test_searches_are_compared_in_one_table(searched, capsys):
    (run,) = searched.iterdir()
    records = stored(searched)
    assert main(["show", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("searches")) + 2
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[start : start + len(TRIALS)]]
    assert len({row[0] for row in rows}) == len(TRIALS)
    scores = [float(row[2]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    for row in rows:
        record = next(r for r in records.values() if row[0].endswith(f" {r['allocation']['allocator']}"))
        assert row[1] == "1"
        score, bits = record["metrics"]["test"]["score"], record["costs"]["average_bits"]
        assert float(row[2]) == pytest.approx(score, abs=1e-4)
        assert float(row[3]) == pytest.approx((8 - bits) * (score - 0.1), rel=1e-3)
        assert float(row[6]) == record["metrics"]["search"]["measured"]
        assert float(row[7]) == record["metrics"]["search"]["epochs"] == (record["allocation"]["allocator"] in SEARCHES)
    measured = {row[0].partition(" lsq ")[2]: float(row[6]) for row in rows}
    assert measured["exact"] == measured["milp"] == 0
    assert 0 < measured["exact refined"] <= 33
    assert 6 <= measured["nsga2 generations=2 population=6"] <= 24
    assert "Searches" in (run / "report.html").read_text()
    with (run / "searches.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0][:4] == ["search", "budgets", "mean_score", "hypervolume"]
    assert [tuple(row) for row in table[1:]] == [tuple(row) for row in rows]
    assert (run / "searches.png").read_bytes().startswith(b"\x89PNG")


def test_another_reference_runs_nothing_again(searched, tmp_path, capsys):
    shutil.copytree(searched, tmp_path / "out")
    values = ["sensitivity.examples=60", "evaluate.batch_size=60", "quantize.menu=[[2,2],[4,4],[8,8]]"]
    values += ["report.reference=[6,0.2]", f"sweep={json.dumps({'list': TRIALS})}", f"output={tmp_path / 'out'}"]
    assert main(["sweep", str(write_small(tmp_path)), *settings(*values)]) == 0
    assert f"0 trials run, {len(TRIALS)} found done" in capsys.readouterr().out
    (run,) = (tmp_path / "out").iterdir()
    assert json.loads((run / "report.json").read_text()) == {"cost": "average_bits", "reference": [6.0, 0.2]}
