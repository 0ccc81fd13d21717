"""Figures read records: what they show, that they run nothing, and what happens where records are absent or wrong."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from small_sweep import one_line

import paper_figures
import qresearch.figure_commands
from paper_figures import FIGURES
from paper_figures import figure as figures
from paper_figures.figure import HEADER, ORIGIN, Row, make_records, picture_bytes, records_of
from paper_figures.tables import PAGES, current, markdown
from qresearch.cli import main
from qresearch.errors import DataError

RUN = [name for name in FIGURES if records_of(name)]
NOT_RUN = [name for name in FIGURES if name not in RUN]
every_figure = pytest.mark.parametrize("name", FIGURES)


def note(name):
    """The entries of a figure's docstring."""
    text = getattr(paper_figures, name).__doc__
    return dict(re.findall(r"^(\w+): (.*?)(?=^\w+: |\Z)", text, re.MULTILINE | re.DOTALL))


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def errors(capsys):
    return one_line(capsys.readouterr().err.removesuffix("1 problem, nothing started\n"))


def test_most_figures_have_records():
    assert len(RUN) > len(NOT_RUN) > 0


@every_figure
def test_a_figure_says_where_it_comes_from(name):
    entries = note(name)
    assert {"Paper", "Published", "Recipe", "Run", "Tolerance"} <= set(entries)
    assert "http" in entries["Paper"] or "our own" in entries["Paper"]
    assert ("not run" in entries["Run"]) == (name in NOT_RUN)


@every_figure
def test_without_records_there_is_no_number_of_ours(name):
    rows = FIGURES[name].rows([])
    assert all(row.ours is None and row.within is None for row in rows)
    assert rows


@pytest.mark.parametrize("name", RUN)
def test_records_say_where_they_come_from(name):
    for record in records_of(name):
        assert set(ORIGIN) <= set(record)
        assert re.fullmatch("[0-9a-f]{40}", record["commit"])
        assert record["dirty"] is False
        assert record["command"] == FIGURES[name].command(name)
        assert record["versions"]["jax"]
        assert record["device"]["kind"]
        assert record["seconds"] >= 0
    rows = FIGURES[name].rows(records_of(name))
    assert all(row.ours is not None for row in rows), "the committed records are whole"
    assert len({row.what for row in rows}) == len(rows)


DRAWN = [pytest.param(name, marks=[] if name == "lsq_pact_gradients" else pytest.mark.slow) for name in RUN]


@pytest.mark.parametrize("name", DRAWN)
def test_equal_records_are_equal_bytes(name):
    first, second = (picture_bytes(name, FIGURES[name].draw(records_of(name))) for _ in range(2))
    assert set(first) == {"png", "svg", "pdf"}
    assert first == second
    assert b"Date" not in first["pdf"]
    assert b"<dc:date>" not in first["svg"]


def test_drawing_runs_no_model(tmp_path):
    """It does not even import JAX."""
    arguments = ["figure", "ptq_ladder", "--output", str(tmp_path)]
    script = f"import sys, qresearch.cli\nassert qresearch.cli.main({arguments}) == 0"
    script += "\nprint(sorted({'jax', 'flax', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert {path.name for path in tmp_path.iterdir()} == {
        f"ptq_ladder.{suffix}" for suffix in ("csv", "png", "svg", "pdf")
    }
    rows = table(tmp_path / "ptq_ladder.csv")
    assert tuple(rows[0]) == HEADER
    assert {row["within tolerance"] for row in rows if row["tolerance"]} == {"yes"}


def test_what_is_within_its_tolerance():
    assert Row("a", 91.44, 91.79, 0.35).within
    assert not Row("a", 91.44, 91.80, 0.35).within
    assert Row("a", 19, 19, 0.0).within
    assert Row("a", 19, 18, 0.0).within is False
    assert Row("a", 2.18, 0.1, "sign").within
    assert Row("a", 2.18, -0.1, "sign").within is False
    assert Row("a", 1.0, 2.0).within is None
    assert Row("a", None, 2.0, 0.1).cells == ("a", "2", "", "", "0.1", "")
    assert Row("a", 1.0, None, 0.1).cells == ("a", "", "1", "", "0.1", "")
    assert Row("a", 1.0, 1.5, 0.1).cells == ("a", "1.5", "1", "+0.5", "0.1", "no")


def test_a_number_that_is_off_is_called_so():
    records = [dict(record) for record in records_of("ptq_ladder")]
    for record in records:
        if "qdrop" in record["methods"]:
            record["test"] = {"score": 0.5}
    verdicts = {row.what: row.within for row in FIGURES["ptq_ladder"].rows(records)}
    assert verdicts["W2A4, QDrop - AdaRound, points"] is False
    assert verdicts["W2A4, BRECQ - AdaRound, points"] is True


def test_a_figure_that_was_not_run_is_listed_with_its_command(tmp_path, capsys):
    name = NOT_RUN[0]
    assert main(["figure", name, "--output", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert f"{name}: not run; QRESEARCH_DATA=FOLDER qresearch figure {name} --run" in told.out
    assert one_line(told.err).startswith(f"error: not drawn, for want of records: {name}")
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.csv"]
    assert all(row["ours"] == "" for row in table(tmp_path / f"{name}.csv"))


def test_the_list_and_the_tables_have_every_figure(capsys):
    for arguments in (["--list"], ["--table"], ["--table", "commands"], ["--table", "figures"]):
        assert main(["figure", *arguments]) == 0
        text, of_numbers = capsys.readouterr().out, arguments == ["--table"]
        listed = [name for name, one in FIGURES.items() if not of_numbers or one.rows(records_of(name))]
        assert all(name in text for name in listed)
    lines = text.splitlines()
    assert set(lines[1]) == {"|", "-"}
    assert {line.count(" | ") for line in lines[2:]} == {lines[0].count(" | ")}
    for name in NOT_RUN:
        assert f"`{name}`" in text
        assert any("not run" in line and f"`{name}`" in line for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_the_documents_are_current(page):
    assert current(page) == page.read_text(encoding="utf-8"), "run 'python -m paper_figures.tables'"
    assert "`hawq_v3_resnet18` |" in current(page)


def test_the_number_farthest_off_is_shown():
    close, off = Row("close", 1.0, 1.001, 0.1), Row("far, of a wide tolerance", 10.0, 11.0, 2.0)
    own = FIGURES["dq_gradients"]._replace(rows=lambda records: [close, off, Row("not judged", None, 9.0)])
    table = markdown("figures", {"dq_gradients": own})
    assert "| 2 of 2 | far, of a wide tolerance | 10 | 11 | +1 |" in table
    wrong = own._replace(rows=lambda records: [off, Row("sign", 1.0, -0.1, "sign")])
    assert "| 1 of 2 | sign | 1 | -0.1 | -1.1 |" in markdown("figures", {"dq_gradients": wrong})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimal_clip"], "no figure 'optimal_clip'; did you mean 'optimal_clips'?"),
        ([], "expected names, --all, --list or --table"),
        (["optimal_clips", "--all"], "names and --all exclude each other"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(capsys, arguments, message):
    assert main(["figure", *arguments]) == 2
    assert message in errors(capsys)


@pytest.fixture
def data(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setattr(figures, "DATA", folder)
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"commit": ', "1 torn lines"),
        ("", "no records"),
        ("{}\n", "records without command, commit, device, seconds, versions"),
        (json.dumps(dict.fromkeys(ORIGIN, 0)) + "\n", "its records are not what the figure needs (KeyError"),
    ],
)
def test_records_that_are_wrong_are_one_line(data, tmp_path, capsys, content, message):
    data.mkdir()
    (data / "dq_gradients.jsonl").write_text(content)
    assert main(["figure", "dq_gradients", "--output", str(tmp_path / "out")]) == 2
    assert message in errors(capsys)
    assert not list(tmp_path.glob("out/*.png"))


def test_an_installed_package_without_the_folder_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(qresearch.figure_commands, "__file__", str(tmp_path / "qresearch" / "figure_commands.py"))
    assert main(["figure", "--list"]) == 2
    assert "run this in a clone of the repository" in errors(capsys)


def test_records_are_made_drawn_and_those_of_trials_keep_their_origin(data, tmp_path, monkeypatch, capsys):
    own = {"curve": "a", "x": [1.0]}
    made = FIGURES["dq_gradients"]._replace(
        run=lambda: [own, {**own, "commit": "of the trial", "seconds": 7}],
        rows=lambda records: [Row("number", 1.0, float(len(records)), 0.5)],
        draw=lambda records: FIGURES["reliability"].draw(
            [{"simulations": 1, "bins": [], "posterior": "p", "calibration_error": 0.0}]
        ),
    )
    monkeypatch.setitem(FIGURES, "dq_gradients", made)
    assert main(["figure", "dq_gradients", "--run", "--output", str(tmp_path)]) == 0
    assert "dq_gradients: 0 of 1 numbers within tolerance" in capsys.readouterr().out
    first, second = records_of("dq_gradients")
    assert first["x"] == [1.0]
    assert first["command"] == "qresearch figure dq_gradients --run"
    assert (second["commit"], second["seconds"]) == ("of the trial", 7)
    before = (data / "dq_gradients.jsonl").read_bytes()
    with pytest.raises(ZeroDivisionError):
        make_records("dq_gradients", made._replace(run=lambda: [1 // 0]))
    assert (data / "dq_gradients.jsonl").read_bytes() == before


def test_with_all_what_needs_a_gpu_is_left_out(data, tmp_path, monkeypatch, capsys):
    ran = []

    def fake(name):
        return lambda: ran.append(name) or [{"made": name}]

    for name, one in list(FIGURES.items()):
        monkeypatch.setitem(FIGURES, name, one._replace(run=fake(name), rows=lambda records: []))
    monkeypatch.setattr(figures, "write_figure", lambda *given: [])
    monkeypatch.setattr(qresearch.figure_commands, "_has_gpu", lambda: False)
    assert main(["figure", "--all", "--run", "--output", str(tmp_path)]) == 0
    assert ran == [name for name in FIGURES if FIGURES[name].device == "cpu"]
    text = capsys.readouterr().out
    assert all((f"{name}: not run" in text) == (name not in ran) for name in FIGURES)

    def lacks_data():
        raise DataError("no data")

    monkeypatch.setitem(FIGURES, ran[0], FIGURES[ran[0]]._replace(run=lacks_data))
    failing = ran[0]
    ran.clear()
    assert main(["figure", "--all", "--run", "--output", str(tmp_path)]) == 3
    assert one_line(capsys.readouterr().err) == f"error: {failing}: no data"
    assert len(ran) == sum(one.device == "cpu" for one in FIGURES.values()) - 1
    ran.clear()
    assert main(["figure", NOT_RUN[0], "--run", "--output", str(tmp_path)]) == 0
    assert ran == [NOT_RUN[0]]


@pytest.mark.parametrize("name", ["lsq_pact_gradients"])
def test_the_committed_records_are_what_a_run_gives(name):
    for found, committed in zip(FIGURES[name].run(), records_of(name), strict=True):
        assert found["gradient"] == pytest.approx(committed["gradient"], abs=1e-6)
        assert found["largest_difference"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimal_clips", "dq_gradients"])
def test_closed_forms_run_again_stay_within_tolerance(name):
    rows = FIGURES[name].rows(FIGURES[name].run())
    assert all(row.within for row in rows)
