"""Trackers fail; sweeps do not."""

from __future__ import annotations

import sys
import tomllib

import pytest
from conftest import ROOT
from small_sweep import ONE, one_line, settings, write_small
from tracked import make_run

from qresearch import trackers
from qresearch.cli import main
from qresearch.trackers.mirror import mirrors

# A tracker that needs a package has an extra of its name.
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


class Broken:
    """A tracker that raises in one of its methods, and remembers the calls of all."""

    def __init__(self, where):
        self.where, self.calls = where, []
        self._called("open")

    def _called(self, method):
        self.calls.append(method)
        if method == self.where:
            raise OSError(f"no {method}\nand a second line")

    def log(self, record, rows):
        self._called("log")

    def close(self):
        self._called("close")


@pytest.mark.parametrize(("where", "calls"), [("open", 1), ("log", 2), ("close", 1 + 3 + 3 + 1), (None, 1 + 3 + 3 + 1)])
def test_a_tracker_that_raises_is_one_line_and_is_not_called_again(tmp_path, monkeypatch, capfd, where, calls):
    run, records = make_run(tmp_path)
    made, lines, whole = [], [], []

    class Whole(Broken):
        def __init__(self):
            whole.append(self)
            super().__init__(None)

    class Counted(Broken):
        def __init__(self):
            made.append(self)
            super().__init__(where)

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda folder, run: Counted())
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda folder, run: Whole())
    with mirrors(["tensorboard", "wandb"], run, lines.append) as mirror:
        for record in records:
            mirror.log(record.key)
    assert lines == ([f"warning: tracker 'tensorboard' is off: OSError: no {where}"] if where else [])
    assert [len(tracker.calls) for tracker in made] == [calls]
    assert [len(tracker.calls) for tracker in whole] == [1 + 3 + 3 + 1], "the other one goes on"
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_is_no_failure_of_a_tracker_and_closes_it(tmp_path, monkeypatch):
    run, _ = make_run(tmp_path)
    tracker, lines = Broken(None), []
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda folder, run: tracker)
    with pytest.raises(KeyboardInterrupt), mirrors(["tensorboard"], run, lines.append):
        raise KeyboardInterrupt
    assert (tracker.calls[-1], lines) == ("close", [])


@pytest.mark.parametrize("name", [name for name in trackers.TRACKERS if name in EXTRAS])
def test_a_package_that_is_missing_is_one_line_that_names_the_extra(tmp_path, monkeypatch, name):
    for module in [name, *(loaded for loaded in sys.modules if loaded.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    run, _ = make_run(tmp_path)
    before, lines = sorted(run.path.rglob("*")), []
    with mirrors([name], run, lines.append):
        pass
    (line,) = lines
    assert line.startswith(f"warning: tracker '{name}' is off: its package cannot be imported (")
    assert line.endswith(f"); pip install 'qresearch[{name}]'")
    assert sorted(run.path.rglob("*")) == before


# Those without a package, and those whose package all tests have.
@pytest.mark.parametrize(
    "name", [name for name in trackers.TRACKERS if name not in EXTRAS or name in EXTRAS["test"][0]]
)
def test_what_a_mirror_holds_is_not_written_again(tmp_path, name):
    run, records = make_run(tmp_path)

    def mirrored():
        with mirrors([name], run, pytest.fail) as mirror:
            for record in records:
                mirror.log(record.key)
        files = [path for path in (run.path / name).rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    first = mirrored()
    assert first
    assert mirrored() == first


def test_no_tracker_no_file(tmp_path):
    run, records = make_run(tmp_path)
    before = sorted(run.path.rglob("*"))
    with mirrors([], run, pytest.fail) as mirror:
        mirror.log(records[0].key)
    assert sorted(run.path.rglob("*")) == before


def test_an_unknown_tracker_is_one_line_before_anything_starts(tmp_path, capsys):
    config = write_small(tmp_path)
    assert main(["check", str(config), *settings(*ONE, "trackers=[tensorboard, tensorbord]")]) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error == "error: --set  trackers.1: unknown name \"tensorbord\"; did you mean 'tensorboard'?"
    assert main(["check", str(config), *settings(*ONE, "trackers=[tensorboard]")]) == 0
    assert one_line(capsys.readouterr().out).endswith("fine, 1 trial (1 ptq)")
