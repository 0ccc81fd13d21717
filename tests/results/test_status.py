"""What ``qresearch status`` says of a run."""

from __future__ import annotations

import hashlib
import os
import re
import time

import pytest
from results_fixtures import ENVIRONMENT

from qresearch.results.ledger import open_ledger
from qresearch.results.lock import locked
from qresearch.results.run_folder import create_run
from qresearch.results.status import status_lines


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path, "quick", "name: quick\n", {"a": 1}, ENVIRONMENT)


def keys(count):
    return {hashlib.sha256(str(i).encode()).hexdigest(): f"trial-{i}" for i in range(count)}


def test_states_are_counted_and_failures_are_told(run):
    first, second, *_ = labels = keys(4)
    with locked(run.path), open_ledger(run.path) as ledger:
        ledger.reconcile(labels, [])
        ledger.begin([first, second])
        ledger.finish(first, "the loss became NaN")
        head, counts, *rest = status_lines(run)  # while it is written
    assert f"written by process {os.getpid()} on " in head
    assert counts == "2 todo, 1 running, 0 done, 0 stopped, 1 failed; 2 attempts"
    assert re.match(r"running  [0-9a-f]{8} trial-1 \(attempt 1, ", rest[0])
    assert re.match("failed  [0-9a-f]{8} trial-0 ", rest[1])
    assert rest[1].endswith(": the loss became NaN")
    assert status_lines(run)[0].endswith("nobody writes it now")


def test_a_run_of_an_earlier_version_says_so(run):
    assert "no ledger" in status_lines(run)[1]


def test_many_trials_are_listed_in_part_and_fast(run):
    labels = keys(1000)
    with open_ledger(run.path) as ledger:
        ledger.reconcile(labels, [])
        ledger.begin(labels)
    started = time.perf_counter()
    lines = status_lines(run)
    assert time.perf_counter() - started < 1
    assert lines[-1] == "running  and 980 more"
