"""Mutated configs give runs or a ConfigError, never another exception, and every line of the error has its place."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from fuzzed_configs import HOSTILE, KEYS, REAL, SEED, TEXT, mutated, schematic, structured
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qresearch.sweep.run
from qresearch.cli import main
from qresearch.config import SweepConfig, config_hash, expand, load, suggest_ends, suggestion_of, trial_label
from qresearch.results import safe_name
from qresearch.sweep.assemble import known_names

# An error has its place and its key; where the form of a file is wrong there may be no key.
LINE = re.compile(r"error: (fuzz\.yaml(:\d+)?|--set)  (?P<message>.+)")
KEYED = re.compile(r"\S.*?: \S.*")
FORM = re.compile(
    r"not valid YAML|character U\+|byte 0x|a second document|the file (is|holds)|and \d+ more problems"
    r"|expected key=value|anchors|tags|text with control|expected a name as key|a number of \d+ digits|nested more"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``qresearch check`` reads a file, compares names, and stops before it loads data."""
    known = known_names()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(qresearch.sweep.run, "plan_sweep", lambda sweep: expand(sweep, known))
    return tmp_path


def _check(content: bytes, overrides: list[str]) -> bool:
    """Whether the program accepts the file. Whatever it accepts has a label and a hash."""
    Path("fuzz.yaml").write_bytes(content)
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(["check", "fuzz.yaml", *(f"--set={text}" for text in overrides)])
    if status == 0:
        assert (errors.getvalue(), out.getvalue().count("\n")) == ("", 1)
        return _are_runs(load("fuzz.yaml", overrides))
    *lines, last = errors.getvalue().split("\n")[:-1]
    assert (status, out.getvalue()) == (2, "")
    assert re.fullmatch(rf"{len(lines)} problems?, nothing started", last)
    for line in lines:
        found = LINE.fullmatch(line)
        assert found, line
        assert KEYED.fullmatch(found["message"]) or FORM.match(found["message"]), line
        assert line.isprintable()
        assert len(line) < 1000
    return False


def _are_runs(sweep: SweepConfig) -> bool:
    runs = expand(sweep)
    assert len({config_hash(run) for run in runs}) == len(runs)
    assert all(safe_name(trial_label(run)) for run in (*runs, *suggest_ends(sweep)))
    assert runs or suggestion_of(sweep)
    return True


def _fuzz(examples: int) -> None:
    accepted = {True: 0, False: 0}

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        structured() | mutated() | schematic(),
        st.lists(KEYS.flatmap(lambda key: st.text(max_size=6).map(f"{key}={{}}".format)), max_size=1),
    )
    def check(content: bytes, overrides: list[str]) -> None:
        accepted[_check(content, overrides)] += 1

    check()
    # A fuzzer that only ever meets one of the two outcomes tests nothing.
    assert min(accepted.values()) > examples / 100


def test_the_seeds_are_valid(folder: Path) -> None:
    assert len(REAL) > 5
    assert all(_check(text.encode(), []) for text in REAL)
    assert _check(TEXT.encode(), [])
    assert _check(json.dumps(SEED).encode(), [])


def test_mutated_configs(folder: Path) -> None:
    _fuzz(300)


@pytest.mark.slow
def test_ten_thousand_mutated_configs(folder: Path) -> None:
    """It took 204 s, 110 s of CPU time (2 cores shared with other work)."""
    _fuzz(10_000)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_at_every_place(folder: Path, text: str) -> None:
    for place in [0, *(match.end() for match in re.finditer(r": |- |\n|\[", TEXT))]:
        _check((TEXT[:place] + text + TEXT[place:]).encode(), [])
