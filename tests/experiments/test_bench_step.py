"""The benchmarks compute what they say they time; how fast that is, no test asks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def bench(monkeypatch):
    """Imports an experiment by name; they import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield __import__
    for name in [name for name, module in sys.modules.items() if str(FOLDER) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (8, 2)])
def test_im2col_is_the_convolution(bench, size, stride):
    module = bench("bench_conv")
    x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    found, wanted = (function(x, kernel, stride) for function in (module.im2col, module.convolution))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_step_has_the_gradients_of_the_quantized_layer(bench):
    module = bench("bench_step")
    case = module.dense()
    (of_variables, of_x), (of_quantized, of_qparams, of_quantized_x) = (
        step() for step in (module.float_step(case), module.quantized_step(case, "lsq"))
    )
    kernel, quantized = (np.ravel(tree["params"]["kernel"]) for tree in (of_variables, of_quantized))
    assert 0.9 < np.corrcoef(kernel, quantized)[0, 1] < 0.9999
    assert np.shape(of_x) == np.shape(of_quantized_x)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(of_qparams))


def test_rows_are_printed_and_written(bench, monkeypatch, tmp_path, capsys):
    module, path = bench("bench_step"), tmp_path / "rows.jsonl"
    monkeypatch.setattr(
        module, "peer_steps", lambda *_: [("broken peer", lambda: (_ for _ in ()).throw(TypeError("no int4")))]
    )
    monkeypatch.setattr(
        sys, "argv", ["bench_step.py", "--case", "dense", "--methods", "minmax", "--repeats", "3", "--json", str(path)]
    )
    module.main()
    ours, peer = map(json.loads, path.read_text().splitlines())
    assert (ours["case"], ours["method"], ours["repeats"]) == ("dense", "minmax", 3)
    assert 0 < ours["float_s"] < 10
    assert ours["ratio"] > 0
    assert peer["failed"] == "TypeError: no int4"
    assert "no int4" in capsys.readouterr().out
