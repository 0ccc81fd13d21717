"""A sweep that is stopped or killed, and the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small_sweep import SMALL, outcome_of, settings, state_of, stored, sweep, write_small

from qresearch.config import config_hash, expand, load
from qresearch.evaluation import Scores
from qresearch.results import RunFolder, create_run, environment
from qresearch.sweep.bench import Bench
from qresearch.sweep.job import store
from qresearch.sweep.outcome import Outcome
from qresearch.sweep.progress import Silent


def assert_equal(output, unbroken):
    """Every number of every record is the same bit for bit, and so are the scores of every example."""
    found, expected = stored(output), stored(unbroken)
    assert set(found) == set(expected)
    for label, record in found.items():
        if jax.default_backend() == "cpu":
            assert outcome_of(record) == outcome_of(expected[label]), label
        else:  # trials run side by side there, and fewer of them are another program
            assert record["metrics"]["test"] == pytest.approx(expected[label]["metrics"]["test"], abs=0.05)


KILLS = {
    # signal: (what must be there before it is sent, its exit status)
    signal.SIGINT: ("*/trials/*/result.json", 130),
    signal.SIGTERM: ("*/trials/*/result.json", 143),
    signal.SIGKILL: ("*/trials/*qat*/result.json", -signal.SIGKILL),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """For each signal: (config, output folder, exit status, standard error) of a sweep that it ended."""
    folders = {number: tmp_path_factory.mktemp(number.name) for number in KILLS}
    running = {}
    for number, folder in folders.items():
        command = [sys.executable, "-m", "qresearch.cli", "sweep", str(write_small(folder))]
        running[number] = subprocess.Popen(
            [*command, *settings(f"output={folder / 'out'}")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
    done = {}
    deadline = time.monotonic() + 240
    while len(done) < len(KILLS) and time.monotonic() < deadline:
        for number in KILLS.keys() - done.keys():
            process, output = running[number], folders[number] / "out"
            if any(output.glob(KILLS[number][0])) or process.poll() is not None:
                process.send_signal(number)
                _, error = process.communicate(timeout=60)
                done[number] = (folders[number] / "small.yaml", output, process.returncode, error)
        time.sleep(0.005)
    return done


# Slow: on a busy machine the sweep can end before the signal, so it wants the machine for itself.
@pytest.mark.slow
@pytest.mark.parametrize("number", KILLS)
def test_killed_in_the_middle_the_same_command_continues(killed, number, finished_sweep, capsys):
    config, output, status, error = killed[number]
    assert status == KILLS[number][1]
    kept = state_of(output, "*/trials/*/result.json")
    assert 1 <= len(kept) < 7
    if number != signal.SIGKILL:
        assert error == "stopped: finished trials are kept; the same command continues\n"
    assert sweep(config, output) == 0
    assert f"{7 - len(kept)} trials run, {len(kept)} found done, 0 failed" in capsys.readouterr().out
    assert {file: state_of(output, "*/trials/*/result.json")[file] for file in kept} == kept
    assert_equal(output, finished_sweep)


def test_killed_between_the_history_and_the_record_nothing_is_there_twice(tmp_path, monkeypatch):
    (config,) = expand(load(write_small(tmp_path), ["sweep=null", "flow=qat"]))
    run = create_run(tmp_path / "out", "small", SMALL, {}, environment())
    scores = Scores(np.ones(4, np.float32), np.ones(4, np.float32))
    row = {"train_loss": 0.5, "validation_loss": 0.5, "validation_score": 0.5}
    extra = {"best_epoch": 2, "epochs": {"1": row, "2": row}}
    outcome = Outcome(config, np.full((3, 2), 8.0), 1.0, scores, scores, extra)

    def killed(*args):
        raise KeyboardInterrupt

    bench = Bench(config, run.path, Silent())
    monkeypatch.setattr(RunFolder, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        store(run, bench, outcome)
    monkeypatch.undo()
    assert not run.has(config_hash(config))
    store(run, bench, outcome)
    assert run.has(config_hash(config))
    assert [row["epoch"] for row in run.metrics(config_hash(config))[0]] == [1, 2]
