"""What the interactive page is given: the records' numbers, and texts that cannot become a part of the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys

import pytest
from explorer_cases import HOSTILE, MIXED, fill
from results_fixtures import make_record

from qresearch.cli import main
from qresearch.errors import DataError
from qresearch.report import front, points_of
from qresearch.report.explorer import explorer_html
from qresearch.report.explorer_data import embedded, explorer_data
from qresearch.report.front import points_of_run
from qresearch.results import content_hash
from qresearch.results.run_folder import create_run


@pytest.fixture
def run(tmp_path):
    return fill(tmp_path)


@pytest.fixture
def plotly():
    """Tests that take it make a whole page."""
    pytest.importorskip("plotly", reason="needs Plotly: pip install 'qresearch[report]'")


def test_the_numbers_are_those_of_the_records(run):
    found = explorer_data([run])
    records = {record.key[:8]: record for record in run.records().records}
    trials = [trial for point in found["points"] for trial in point["trials"]]
    assert {trial["key"] for trial in trials} == records.keys()
    assert len(found["points"]) == len(points_of(records.values())) == 6
    for trial in trials:
        record = records[trial["key"]]
        assert trial["costs"] == record.costs
        assert trial["bits"] == record.allocation["bits"]
        for split in ("test", "validation"):
            assert trial[split] == record.metrics[split]


def test_tables_curves_and_beliefs_belong_to_their_trials(run):
    found = explorer_data([run])
    (mixed,) = [p["trials"][0] for p in found["points"] if p["trials"][0]["bits"] == MIXED]
    assert mixed["tables"] == [0]
    assert found["tables"][0]["loss"][0][0] is None
    assert mixed["probabilities"][""]["Dense_0"] == {"W2A4": 0.25, "W4A4": 0.35, "W8A8": 0.4}
    assert mixed["front"] == pytest.approx([0.2, 0.21, 0.22, 0.23, 0.24])
    others = [trial for p in found["points"] for trial in p["trials"] if trial is not mixed]
    # The table is of the float model of seed 0: other seeds have another.
    assert {trial["seed"] for trial in others if trial["tables"]} == {0}
    curves = [trial["epochs"] for trial in others if trial["epochs"]]
    assert len(curves) == 9
    assert curves[0]["epoch"] == [1, 2]
    assert curves[0]["train_loss"] == [1.0, 0.5]


def test_a_text_in_a_record_cannot_become_a_part_of_the_page(run, plotly):
    page = explorer_html([run])
    assert page.count("</script>") == 4
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert HOSTILE in json.dumps(data).replace('\\"', '"')
    assert not set("<>&") & set(embedded([HOSTILE, "<!--", "&"]))


def test_a_page_runs_its_own_three_scripts_and_loads_nothing(run, plotly):
    page = explorer_html([run])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes
    assert len(hashes) == 3


def test_without_plotly_one_line_says_what_to_install(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["report", str(run.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "no interactive page: it needs Plotly; pip install 'qresearch[report]'"
    assert (run.path / "report.html").is_file()
    assert not (run.path / "explorer.html").exists()


def test_several_runs_are_one_page_where_it_is_asked_for(run, plotly, tmp_path, capsys):
    other = create_run(tmp_path, "other", "", {"b": 1}, {})
    other.save(make_record(score=0.8))
    assert main(["report", str(run.path), str(other.path), "--out", str(tmp_path / "both.html")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "both.html")]
    found = explorer_data([run, other])
    assert [entry["name"] for entry in found["runs"]] == [run.path.name, other.path.name]
    assert [point["run"] for point in found["points"]] == [0] * 6 + [1]


def test_a_run_without_trials_and_a_damaged_table_are_clear_errors(run, plotly, tmp_path):
    empty = create_run(tmp_path, "empty", "", {"c": 1}, {})
    with pytest.raises(DataError, match="no finished trial to report"):
        explorer_html([empty])
    table = run.path / "sensitivity" / "table.json"
    table.write_bytes(table.read_bytes().replace(b"0.1", b"0.2"))
    with pytest.raises(DataError, match=r"table\.json.*delete it"):
        explorer_html([run])


def test_the_front_says_which_of_several_trials_was_left(tmp_path):
    """Halving stops all learning rates but one, and leaves their configs: the label of that one has its rate."""
    run = create_run(tmp_path, "halved", "", {"d": 1}, {})
    kept = make_record(config={"learning_rate": 0.1, "seed": 0}, label="same")
    run.save(kept)
    assert "learning_rate" not in points_of_run(run, run.records().records)[0].label
    stopped = {"learning_rate": 0.5, "seed": 0}
    run.start(content_hash(stopped), "same", stopped)
    points = points_of_run(run, run.records().records)
    assert [point.label for point in points] == ["qat lsq uniform W4A4 learning_rate=0.1"]
    assert len(front(points)) == 1
