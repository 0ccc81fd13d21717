"""The experiments on posteriors, whole: on real networks they find what the README says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from qresearch.config import expand, load

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def experiment(monkeypatch):
    """Runs an experiment by name with arguments, as a script of its folder."""
    folder = ROOT / "experiments"
    monkeypatch.syspath_prepend(str(folder))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        __import__(name).main()

    yield run
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("config", "examples"), [("digits_bayes", 300), ("cifar_resnet20_bayes", 500)])
def test_held_out_losses_are_covered(config, examples, experiment, tmp_path, data_folder):
    """The 90 % interval of 204 held-out allocations, over five choices of the 96 that are fitted to."""
    path = ROOT / "configs" / f"{config}.yaml"
    data_folder(expand(load(path))[0])
    experiment("posterior_coverage", path, "--examples", examples, "--out", tmp_path)
    rows = rows_of(tmp_path / "coverage.jsonl")
    assert [row["held_out"] for row in rows] == [204] * 5
    assert 0.85 <= np.mean([row["coverage"]["0.9"] for row in rows]) <= 0.95
    assert 0.4 <= np.mean([row["coverage"]["0.5"] for row in rows]) <= 0.6
    assert (tmp_path / "coverage.png").read_bytes().startswith(b"\x89PNG")


def test_suggestions_need_a_third_of_the_measurements(experiment, tmp_path):
    config = ROOT / "configs" / "digits_bayes.yaml"
    experiment("suggestion_growth", config, "--seeds", 2, "--examples", 300, "--out", tmp_path)
    rows = {(row["method"], row["seed"]): row for row in rows_of(tmp_path / "growth.jsonl")}
    for seed in range(2):
        bayesian, random = rows["bayesian", seed], rows["random", seed]
        assert len(bayesian["losses"]) <= len(random["losses"]) / 3
        assert bayesian["regret"][-1] <= random["regret"][-1]
        assert np.all(np.diff(bayesian["hypervolume"]) >= 0)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_calibration_writes_both_posteriors(experiment, tmp_path):
    experiment("posterior_calibration", "--simulations", 4, "--out", tmp_path)
    honest, control = rows_of(tmp_path / "calibration.jsonl")
    assert set(honest["coverage"]) == {"0.5", "0.9"}
    assert np.nansum([row[2] for row in control["reliability"]]) > 0
