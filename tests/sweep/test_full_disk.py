"""A disk that is full, or cannot be written, at every single write of a sweep."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3

import pytest
from small_sweep import ONE, outcome_of, settings, stored, write_small

from qresearch.cli import main
from qresearch.results import atomic

REASONS = {errno.ENOSPC: "No space left on device", errno.EROFS: "Read-only file system"}
FLOAT = (*ONE, "flow=float")


@pytest.fixture
def write_fails(monkeypatch):
    """Makes the n-th write of a file fail, and all after it; returns the list of what was to be written."""

    real = atomic._write_and_sync

    def at(number, code):
        written = []

        def write(path, data):
            written.append(path)
            if number is not None and len(written) >= number:
                raise OSError(code, os.strerror(code))
            real(path, data)

        monkeypatch.setattr(atomic, "_write_and_sync", write)
        return written

    return at


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert main(["sweep", str(write_small(folder)), *settings(*FLOAT, f"output={folder / 'out'}")]) == 0
    return folder / "out"


def sweep_into(tmp_path):
    return main(["sweep", str(write_small(tmp_path)), *settings(*FLOAT, f"output={tmp_path / 'out'}")])


@pytest.mark.parametrize("code", [errno.ENOSPC, pytest.param(errno.EROFS, marks=pytest.mark.slow)])
def test_at_every_write_it_is_one_line_and_the_same_command_continues(finished, tmp_path, capsys, write_fails, code):
    every = len(write_fails(None, code))
    assert every == 0
    count, number = [], 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        written = write_fails(number, code)
        capsys.readouterr()
        status, text = sweep_into(folder), capsys.readouterr().err
        if len(written) < number:
            assert status == 0
            break
        count.append(written[-1].name)
        assert status == 2, written[-1]
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(text.splitlines()) == len(lines) == 1, text
        assert REASONS[code] in text
        write_fails(None, code)
        assert sweep_into(folder) == 0
        assert [outcome_of(r) for r in stored(folder / "out").values()] == [
            outcome_of(r) for r in stored(finished).values()
        ]
    # Folders, facts of the run, of the float model and of the trial, and the report: not one of them by chance.
    assert len(count) >= 10, count


def test_what_was_there_stays_readable(finished, tmp_path, capsys, write_fails):
    output = shutil.copytree(finished, tmp_path / "out")
    before = stored(output)
    write_fails(1, errno.ENOSPC)
    arguments = settings(*FLOAT, "seed=1", f"output={output}")
    assert main(["sweep", str(write_small(tmp_path)), *arguments]) == 2
    assert stored(output) == before
    capsys.readouterr()
    (run,) = (path for path in output.iterdir() if (path / "resolved.json").is_file())
    assert main(["show", str(run)]) == 0
    assert main(["status", str(run)]) == 0
    assert "1 done" in capsys.readouterr().out


@pytest.mark.parametrize("pages", [1, 2])
def test_a_ledger_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch, pages):
    real = sqlite3.connect

    class Full(sqlite3.Connection):  # SQLite's own error for a disk that holds no page more
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.execute(f"PRAGMA max_page_count = {pages}")

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: real(*args, factory=Full, **kwargs))
    assert sweep_into(tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write ")
    assert line.endswith("ledger.sqlite: database or disk is full")
    monkeypatch.undo()
    assert sweep_into(tmp_path) == 0
    assert not list(tmp_path.glob("out/*/ledger-damaged*"))
