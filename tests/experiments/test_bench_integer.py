"""The benchmark of integers computes what it says it times; how fast that is, no test asks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from qresearch.kernels import blocks as table
from qresearch.kernels.triton import Blocks
from qresearch.numerics.codes import decode

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def bench(monkeypatch):
    """Imports an experiment by name; they import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield __import__
    for name in [name for name, module in sys.modules.items() if str(FOLDER) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def matrix(module, shape, bits, group):
    return np.asarray(decode(module.random_codes(shape, bits, group))).reshape(shape.depth, shape.features)


def test_every_product_is_one(bench):
    module = bench("bench_integer")
    shape = module.Shape(3, 256, 128)
    products = {name: build(shape) for name, build in module.PRODUCTS.items()}
    found = {name: np.asarray(p.function(p.x, p.weights), np.float64) for name, p in products.items()}
    x = np.asarray(products["bfloat16"].x, np.float64)
    rounded = np.clip(np.round(x / (4 / 127)), -128, 127) * (4 / 127)
    wanted = {
        "float32": np.asarray(products["float32"].x, np.float64) @ np.asarray(products["float32"].weights, np.float64),
        "bfloat16": x @ np.asarray(products["bfloat16"].weights, np.float64),
        "int8 W8A8": rounded @ matrix(module, shape, 8, None),
        "int8 weight-only": x @ matrix(module, shape, 8, None),
        "int4 weight-only": x @ matrix(module, shape, 4, module.GROUP),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-2, atol=1e-3 if name == "float32" else 0.15)
    sizes = [products[name].bytes_moved(shape) for name in wanted]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("int8", [False, True])
def test_onnx_runtime_multiplies_the_same(bench, int8):
    module = bench("bench_integer")
    shape = module.Shape(4, 128, 32)
    session, feed = module.onnx_session(shape, int8)
    (found,) = session.run(None, feed)
    step = np.ptp(feed["x"]) / 255 if int8 else 0.0
    weights = matrix(module, shape, 8, None)
    bound = step / 2 * np.abs(weights).sum(0) + 1e-3
    assert np.all(np.abs(found - feed["x"] @ weights) <= bound)


@pytest.mark.slow
def test_rows_are_printed_and_written(bench, monkeypatch, tmp_path, capsys):
    module, path = bench("bench_integer"), tmp_path / "rows.jsonl"
    arguments = ["--shape", "2x128x64", "--network", "mlp", "--batch", "2", "--repeats", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench_integer.py", *arguments])
    module.main()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["method"] for row in rows[:5]] == list(module.PRODUCTS)
    assert [row["method"] for row in rows[5:]] == [
        "ONNX Runtime float32",
        "ONNX Runtime int8",
        "float32",
        "simulated W8A8",
        "W8A8 integer (3 of 3)",
        "W4A32 weight_only (3 of 3)",
    ]
    assert {row["case"] for row in rows} == {"2x128x64", "mlp, batch 2"}
    assert all(0 < row["least"] <= row["seconds"] <= row["most"] for row in rows)
    assert rows[0]["ratio"] == rows[7]["ratio"] == 1.0
    printed = capsys.readouterr().out
    assert all(row["method"] in printed for row in rows)


def test_a_turn_runs_every_method_and_ratios_are_of_the_same_turn(bench):
    module = bench("bench_integer")
    times = {"slow": iter([9.0, 2.0, 4.0, 8.0]), "fast": iter([9.0, 1.0, 1.0, 1.0])}
    found = dict(module.timed({name: lambda each=each: next(each) for name, each in times.items()}, 3, "slow"))
    assert found["slow"] == {"seconds": 4.0, "least": 2.0, "most": 8.0, "ratio": 1.0}
    assert found["fast"]["ratio"] == 0.25


def test_without_a_gpu_nothing_is_tuned(bench, monkeypatch, capsys):
    module = bench("bench_integer")
    monkeypatch.setattr(sys, "argv", ["bench_integer.py", "--tune"])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert "JAX finds no GPU here" in capsys.readouterr().err


def test_tuned_blocks_are_kept_for_every_width(bench, monkeypatch):
    module, kept = bench("bench_integer"), {}
    blocks = Blocks(1, 64, 128, 1, 4, 3)
    monkeypatch.setattr(module, "tune", lambda x, weights: (blocks, 1e-6))
    monkeypatch.setattr(module, "save_blocks", kept.update)
    module.tune_shapes([module.Shape(2, 128, 64)])
    assert kept == {"2x128x64 int8 channel": blocks, "2x128x64 int4 channel": blocks}
    assert table.case_name(3, module.weight_only(module.Shape(3, 256, 64), 4, 128).weights) == "4x256x64 int4 group128"
