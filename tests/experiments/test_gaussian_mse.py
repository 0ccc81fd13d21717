from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qresearch.quantizers import QUANTIZERS
from qresearch.quantizers.base import UnsupportedSpecError
from qresearch.quantizers.dorefa import dorefa
from qresearch.quantizers.midpoint import midpoint
from qresearch.quantizers.minmax import minmax
from qresearch.quantizers.nf4 import nf4

FIELDS = {"method", "symmetric", "range", "bits", "mse", "bound", "samples", "seed", "versions", "device", "commit"}


def ignores_its_range(spec):
    return minmax(spec.__class__(signed=spec.signed, symmetric=spec.symmetric))


def affine_only(spec):
    if spec.symmetric:
        raise UnsupportedSpecError("affine_only: symmetric")
    return midpoint(spec)


METHODS = {"even": minmax, "stubborn": ignores_its_range, "tilted": affine_only, "sixteen": nf4}


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    path = Path(__file__).parents[2] / "experiments" / "gaussian_mse.py"
    spec = importlib.util.spec_from_file_location("gaussian_mse", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """The records of a run over a registry of four methods, and what it printed."""
    path, text = tmp_path_factory.mktemp("records") / "gaussian.jsonl", []
    with pytest.MonkeyPatch.context() as patch:
        for name in list(QUANTIZERS):
            patch.delitem(QUANTIZERS, name)
        for name, factory in METHODS.items():
            patch.setitem(QUANTIZERS, name, factory)
        patch.setattr("builtins.print", lambda line: text.append(line))
        experiment.main([str(path), "--samples", "20000", "--seed", "3", "--bits", "2", "4", "--ranges", "own", "mse"])
    return [json.loads(line) for line in path.read_text().splitlines()], "\n".join(text)


def test_every_accepted_specification_has_its_points(run):
    found = [(one["method"], one["symmetric"], one["range"], one["bits"]) for one in run[0]]
    wanted = [
        ("even", symmetric, name, bits) for symmetric in (True, False) for name in (None, "mse") for bits in (2, 4)
    ]
    wanted += [("stubborn", symmetric, None, bits) for symmetric in (True, False) for bits in (2, 4)]
    wanted += [("tilted", False, name, bits) for name in (None, "mse") for bits in (2, 4)]
    wanted += [("sixteen", True, name, 4) for name in (None, "mse")]
    assert found == wanted


def test_a_record_says_all_about_its_point(run):
    for record in run[0]:
        assert set(record) == FIELDS
        assert record["bound"] == 4.0 ** -record["bits"] < record["mse"] <= 1
        assert (record["samples"], record["seed"]) == (20_000, 3)
        assert record["versions"]["jax"]
        assert record["device"]["kind"]


def test_the_errors_are_those_of_the_grids(run):
    errors = {(one["method"], one["symmetric"], one["range"], one["bits"]): one["mse"] for one in run[0]}
    # The optimal errors of the signed 2- and 4-bit grids with a level zero, by quadrature.
    assert errors["even", True, "mse", 2] == pytest.approx(0.14943, rel=0.05)
    assert errors["even", True, "mse", 4] == pytest.approx(0.01186, rel=0.05)
    assert errors["even", True, None, 4] > 2 * errors["even", True, "mse", 4]


def test_the_table_shows_every_method_once_or_with_its_best_range(run):
    lines = run[1].splitlines()
    assert [sum(line.startswith(name) for line in lines) for name in METHODS] == [4, 2, 2, 2]
    assert any(line.startswith("bound") and "0.0625" in line and "0.00391" in line for line in lines)
    assert all("at 4.00 bits" in line for line in lines if line.startswith("sixteen"))


def test_more_levels_than_the_width_has_are_reported(experiment, run):
    assert "below the bound" not in run[1]
    honest, cheat = (
        experiment.Curve(name, True, None, (1.0, 2.0), mse) for name, mse in (("a", (0.4, 0.1)), ("b", (0.2, 0.1)))
    )
    assert experiment.below([honest, cheat, cheat]) == ["b at 1 bits"]


def test_methods_that_rescale_are_left_out(experiment, monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "bent", lambda spec: dorefa(spec)._replace(traits=frozenset({"rescales"})))
    x = experiment.jax.random.normal(experiment.jax.random.key(0), (64,))
    for name in list(QUANTIZERS):
        if name != "bent":
            monkeypatch.delitem(QUANTIZERS, name)
    assert list(experiment.curves(x, [4.0], [None])) == []
