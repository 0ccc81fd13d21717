from __future__ import annotations

import csv
import os
import stat

import pytest
from results_fixtures import ENVIRONMENT, make_examples, make_record

from qresearch.errors import DataError
from qresearch.report import write_report
from qresearch.results.run_folder import create_run

NAMES = ["front.csv", "allocations.csv", "front.png", "report.html"]


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path, "quick", "name: quick # <b>\n", {"a": 1}, ENVIRONMENT)


def fill(run):
    for seed in range(3):
        run.save(make_record(seed=seed, score=0.9 + 0.01 * seed), make_examples(seed=seed))
        run.save(make_record(seed=seed, allocator="exact", budget=4.0, score=0.94), make_examples(0.94, seed=seed))
    run.save(make_record(flow="float", score=0.97))


def test_report_of_a_run(run):
    fill(run)
    run.save(make_record(seed=8, status="failed", reason="loss became <NaN>"))
    run.save(make_record(seed=9)).write_text("{")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    paths = write_report(run)
    assert paths == [run.path / name for name in NAMES]
    assert all(path.is_file() for path in paths)
    assert {path: path.read_bytes() for path in before} == before
    with paths[0].open() as stream:
        assert len(list(csv.DictReader(stream))) == 3
    page = paths[3].read_text()
    for text in ("7 trials done, 1 failed, 1 invalid", "loss became &lt;NaN&gt;", "# &lt;b&gt;", "no layer pinned"):
        assert text in page
    assert "qat lsq exact average_bits 4" in page
    again = {path: path.read_bytes() for path in paths}
    assert {path: path.read_bytes() for path in write_report(run)} == again


def test_report_without_examples_or_sweep_text(run):
    run.save(make_record())
    (run.path / "sweep.yaml").unlink()
    page = write_report(run)[3].read_text()
    assert "No mixed and uniform allocation of equal average bits" in page
    assert "&quot;a&quot;: 1" in page


def test_empty_run_is_a_clear_error(run):
    with pytest.raises(DataError, match=r"no finished trial to report \(0 failed, 0 invalid\)"):
        write_report(run)
    run.save(make_record(status="failed", reason="loss became NaN"))
    with pytest.raises(DataError, match=r"\(1 failed, 0 invalid\)"):
        write_report(run)
    assert [path.name for path in run.path.iterdir() if path.name in NAMES] == []


def test_unwritable_run_is_a_clear_error(run, monkeypatch):
    fill(run)
    real = os.open

    def read_only(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and stat.S_ISDIR(os.stat(run.path).st_mode):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(DataError, match=r"cannot write .*front\.csv: Permission denied"):
        write_report(run)
