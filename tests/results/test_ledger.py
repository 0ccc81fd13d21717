"""The ledger of a run: what it keeps through kills, cuts and many writers."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from qresearch.errors import DataError
from qresearch.results.ledger import NAME, STATES, open_ledger


def key_of(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


LABELS = {key_of(i): f"trial-{i}" for i in range(5)}


def states(folder):
    with open_ledger(folder) as ledger:
        return {row.label: row.state for row in ledger.rows()}


def test_a_trial_goes_through_its_states(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.reconcile(LABELS, [])
        assert [row.label for row in ledger.rows()] == list(LABELS.values())
        ledger.begin([key_of(0), key_of(1)])
        ledger.finish(key_of(0))
        ledger.finish(key_of(1), "the loss became NaN")
        ledger.begin([key_of(1)])
        first, second, *rest = ledger.rows()
    assert (first.state, first.attempts, first.reason) == ("done", 1, None)
    assert (second.state, second.attempts, second.reason) == ("running", 2, "the loss became NaN")
    assert {row.state for row in rest} == {"todo"}


def test_result_files_are_the_truth(tmp_path):
    """Done without a result, and running when the process died: to do again. A result that is there: done."""
    with open_ledger(tmp_path) as ledger:
        ledger.reconcile(LABELS, [])
        ledger.begin(LABELS)
        ledger.finish(key_of(0))
        ledger.finish(key_of(1), "reason")
    with open_ledger(tmp_path) as ledger:
        ledger.reconcile({key_of(9): "added"}, [key_of(2)])
    found = states(tmp_path)
    assert found == {
        "trial-0": "todo",
        "trial-1": "failed",
        "trial-2": "done",
        "trial-3": "todo",
        "trial-4": "todo",
        "added": "todo",
    }


def test_what_was_not_planned_is_refused_and_changes_nothing(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.reconcile(LABELS, [])
        with pytest.raises(DataError, match=f"no trial {key_of(7)[:8]}"):
            ledger.begin([key_of(0), key_of(7)])
    assert set(states(tmp_path).values()) == {"todo"}


WRITE = """
import sys
from pathlib import Path
from qresearch.results.ledger import open_ledger
from test_ledger import key_of
with open_ledger(Path(sys.argv[1])) as ledger:
    own = range(int(sys.argv[2]), int(sys.argv[3]))
    ledger.reconcile({key_of(i): f"trial-{i}" for i in own}, [])
    for i in own:
        ledger.begin([key_of(i)])
        ledger.finish(key_of(i))
        print(i, flush=True)
"""


def writer(folder, first, last):
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    command = [sys.executable, "-c", WRITE, str(folder), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})


def test_a_killed_writer_loses_nothing_that_it_reported(tmp_path):
    process = writer(tmp_path, 0, 10_000)
    reported = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    reported += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    found = states(tmp_path)
    complete = [line for line in reported if line.endswith("\n")]
    assert len(complete) >= 20
    assert all(found[f"trial-{int(line)}"] == "done" for line in complete)
    assert set(found.values()) <= set(STATES)


@pytest.mark.slow
def test_eight_writers_at_once(tmp_path):
    """The lock allows one; if it fails (a file system without locks), nothing is torn either."""
    running = [writer(tmp_path, 250 * i, 250 * (i + 1)) for i in range(8)]
    for process in running:
        process.communicate(timeout=300)
        assert process.returncode == 0
    with open_ledger(tmp_path) as ledger:
        rows = ledger.rows()
    assert len(rows) == len({row.key for row in rows}) == 2000


def test_a_ledger_that_is_cut_anywhere_opens_or_says_so(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.reconcile({key_of(i): f"trial-{i}" for i in range(200)}, [])
    whole = (tmp_path / NAME).read_bytes()
    random, refused = np.random.default_rng(0), []
    for i, length in enumerate(random.integers(0, len(whole), 200)):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / NAME).write_bytes(whole[:length])
        try:
            with open_ledger(folder) as ledger:
                assert {row.state for row in ledger.rows()} <= {"todo"}
        except DataError as error:
            refused.append(str(error).startswith(f"{folder / NAME}: is damaged"))
    assert len(refused) > 150
    assert all(refused)


@pytest.mark.parametrize("content", [b"not a data base", b"\0" * 4096, None])
def test_what_is_no_ledger_is_named(tmp_path, content):
    if content is None:
        (tmp_path / NAME).mkdir()
    else:
        (tmp_path / NAME).write_bytes(content)
    with pytest.raises(DataError, match=NAME), open_ledger(tmp_path):
        raise AssertionError


def test_a_thousand_trials_take_seconds(tmp_path):
    started = time.perf_counter()
    with open_ledger(tmp_path) as ledger:
        ledger.reconcile({key_of(i): f"trial-{i}" for i in range(1000)}, [])
        for i in range(100):
            ledger.begin([key_of(i)])
            ledger.finish(key_of(i))
        assert len(ledger.rows()) == 1000
    assert time.perf_counter() - started < 30
