"""Sweeps whose processes are killed at random moments, again and again: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from kills import TRIALS, assert_nobody_left, assert_whole, begin, children_of, records_of, take_some, workers_on

from qresearch.results.ledger import read_ledger

KILLS = 50
pytestmark = pytest.mark.slow


def test_the_coordinator_is_killed(unbroken, tmp_path):
    random, output, kills, started = np.random.default_rng(0), tmp_path / "out", 0, time.monotonic()
    lost = 0
    while True:
        if kills < KILLS and records_of(output) > 0.9 * TRIALS:
            take_some(output, random)
        process = begin(unbroken, output, "--workers", "2")
        try:
            before = records_of(output)
            # Early, in the middle, and right after something was stored.
            process.communicate(timeout=float(random.uniform(0.5, 14)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            assert_nobody_left(output)
            lost += before > records_of(output)
            continue
        assert process.returncode == 0
        if kills >= KILLS:
            break
    assert lost == 0
    assert_whole(output, unbroken)
    print(f"{kills} kills of the coordinator, {time.monotonic() - started:.0f} s")


def test_workers_are_killed(unbroken, tmp_path):
    random, output, kills, started = np.random.default_rng(1), tmp_path / "out", 0, time.monotonic()
    while kills < KILLS:
        take_some(output, random)
        process = begin(unbroken, output, "--workers", "2")
        while process.poll() is None:
            time.sleep(float(random.uniform(0.5, 8)))
            workers = children_of(process.pid)
            if workers:
                os.kill(int(random.choice(workers)), signal.SIGKILL)
                kills += 1
        text, _ = process.communicate()
        assert process.returncode == 0, text
        assert "again" in text
        assert_whole(output, unbroken)
    print(f"{kills} kills of workers, {time.monotonic() - started:.0f} s")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_no_orphan(unbroken, tmp_path, number, status):
    output = tmp_path / "out"
    process = begin(unbroken, output, "--workers", "2")
    until = time.monotonic() + 120
    while records_of(output) < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert workers_on(output)
    process.send_signal(number)
    text, _ = process.communicate(timeout=10)
    assert process.returncode == status
    assert text.endswith("stopped: finished trials are kept; the same command continues\n")
    assert "Traceback" not in text
    assert_nobody_left(output)
    (run,) = output.iterdir()
    assert {row.state for row in read_ledger(run)} <= {"done", "todo"}
