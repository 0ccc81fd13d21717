"""A search that prunes channels, from a config: QAT goes on from it, and records count what is left."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_sweep import SMALL, outcome_of, settings, stored, write_small

import qresearch.sweep.choose
import qresearch.sweep.execute
from qresearch.cli import main
from qresearch.results import open_run
from qresearch.sweep.outcome import summary
from qresearch.sweep.restore import find_trial, restore

QUANTIZE = {
    "weight": {"quantizer": "bayesian_bits", "granularity": "per_tensor", "options": {"prune_axis": -1}},
    "input": {"quantizer": "bayesian_bits"},
    "menu": {"weight": [2, 4, 8], "input": [2, 4, 8]},
}
ALLOCATION = {
    "allocator": "bayesian_bits",
    "cost": "relative_bops",
    "budget": 0.05,
    "options": {"mu": 0.5, "strength": 0.0, "travel": 100.0},
}
VALUES = [f"quantize={json.dumps(QUANTIZE)}", f"allocation={json.dumps(ALLOCATION)}", "float.epochs=1", "qat.epochs=1"]
VALUES += ["search={epochs: 4, batch_size: 128, learning_rate: 1e-3}"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The output folder of a search and the QAT that goes on from it."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert pruned(folder) == 0
    return folder / "out"


def pruned(folder):
    """The exit status of the sweep."""
    values = settings(*VALUES, 'sweep={"list": [{"flow": "qat"}]}', f"output={folder / 'out'}")
    return main(["sweep", str(write_small(folder, SMALL)), *values])


def test_qat_goes_on_with_fixed_gates_and_records_count_kept_channels(unbroken):
    (record,) = stored(unbroken).values()
    kept = record["metrics"]["channels_kept"]
    assert 0 < min(kept.values()) < 1
    assert kept["linear3/kernel"] == 1
    weights, inputs = np.asarray(record["allocation"]["bits"]).T
    assert set(inputs) <= {2, 4, 8}
    for width, share in zip(weights, kept.values()):
        assert any(np.isclose(width, share * bits) for bits in (2, 4, 8))
    assert record["costs"]["relative_bops"] <= ALLOCATION["budget"]
    search = record["metrics"]["search"]
    assert search["epochs"] == 4
    chances = search["shares"]["linear1/kernel"]
    assert set(chances["weight"]) == set(chances["input"]) == {"2", "4", "8"}
    np.testing.assert_allclose(sum(chances["input"].values()), 1, rtol=1e-5)
    assert sum(chances["weight"].values()) < 1  # the rest of the channels is pruned


def test_a_restored_trial_has_the_widths_that_it_ran_with(unbroken):
    (folder,) = unbroken.iterdir()
    run = open_run(folder)
    found = restore(run, find_trial(run))
    assert set(found.bits.reshape(-1)) <= {0, 2, 4, 8}
    scores = summary(found.scores(found.bench.test), found.setup.task)
    assert scores == pytest.approx(found.record.metrics["test"], rel=1e-5)


def test_stopped_before_qat_the_same_command_gives_the_same_record(unbroken, tmp_path, monkeypatch, capsys):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(qresearch.sweep.execute, "_train", stopped)
    assert pruned(tmp_path) == 130
    assert not stored(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*/searches/*.json"))) == 1
    monkeypatch.undo()
    monkeypatch.setattr(qresearch.sweep.choose.Chooser, "_train", stopped)  # what was found is not searched for again
    assert pruned(tmp_path) == 0
    assert "again" not in capsys.readouterr().out
    (found,), (expected,) = (stored(output).values() for output in (tmp_path / "out", unbroken))
    assert outcome_of(found) == outcome_of(expected)


def test_rounding_the_float_model_with_channel_gates_is_refused(tmp_path, capsys):
    values = settings(*VALUES, "sweep=null", f"output={tmp_path / 'out'}")
    assert main(["check", str(write_small(tmp_path, SMALL)), *values]) == 2
    assert "prune_axis: only QAT goes on from a search that prunes channels; set 'flow: qat'" in capsys.readouterr().err
