"""A sweep that is stopped inside its trainings goes on from their checkpoints, and leaves none behind."""

from __future__ import annotations

import pytest
from small_sweep import outcome_of, stored, sweep, write_small

import qresearch.training

ONE_QAT = ("sweep={list: [{flow: qat, allocation: {bits: [4, 4]}}]}", "checkpoints={every: 10, keep: 1}")
FLOAT, QAT = 5 * 8, 8 * 8  # epochs of 8 steps


@pytest.fixture
def steps(monkeypatch):
    """Counts the training steps; the one at ``stop`` is interrupted."""
    real, taken = qresearch.training.wait, []

    def wait(losses):
        taken.append(1)
        if len(taken) == wait.stop:
            raise KeyboardInterrupt
        real(losses)

    monkeypatch.setattr(qresearch.training, "wait", wait)

    def run(stop, *arguments):
        taken.clear()
        wait.stop = stop
        return sweep(*arguments), len(taken)

    return run


def test_stopped_in_both_trainings(tmp_path, steps, capsys):
    config, output = write_small(tmp_path), tmp_path / "out"
    assert steps(None, config, tmp_path / "unbroken", *ONE_QAT) == (0, FLOAT + QAT)
    assert steps(24, config, output, *ONE_QAT) == (130, 24)
    (folder,) = output.glob("*/training/*")
    assert [path.name for path in folder.iterdir()] == ["step-000000020"]
    capsys.readouterr()
    assert steps(FLOAT - 20 + 35, config, output, *ONE_QAT)[0] == 130
    assert f"training continues from {folder / 'step-000000020'}" in capsys.readouterr().out.replace("\n", " ")
    (other,) = output.glob("*/training/*")
    assert [path.name for path in other.iterdir()] == ["step-000000030"]
    assert steps(None, config, output, *ONE_QAT) == (0, QAT - 30)
    assert not list(output.glob("*/training/*"))
    (found,), (expected,) = stored(output).values(), stored(tmp_path / "unbroken").values()
    assert outcome_of(found) == outcome_of(expected)


def test_none_are_written_where_none_are_asked_for(tmp_path, steps):
    config, output = write_small(tmp_path), tmp_path / "out"
    assert steps(24, config, output, ONE_QAT[0], "checkpoints.every=null") == (130, 24)
    assert not list(output.glob("*/training"))
