"""The benchmarks of populations compute what they say they time; how fast that is, no test asks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

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


@pytest.mark.slow
def test_populations_are_timed_beside_the_float_pass(bench, monkeypatch, tmp_path, capsys):
    module, path = bench("bench_population"), tmp_path / "rows.jsonl"
    ran = []
    monkeypatch.setattr(module, "EXAMPLES", 40)
    monkeypatch.setattr(module, "BATCH", 20)

    def broken(allocations):
        raise TypeError("no int4")

    def peer(case, task):
        return {"broken": lambda: broken, "peer": lambda: lambda allocations: ran.append(allocations)}

    monkeypatch.setattr(module, "peers", peer)
    arguments = ["--case", "mlp", "--allocations", "3", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench_population.py", *arguments])
    module.main()
    passed, shared, *rows = map(json.loads, path.read_text().splitlines())
    assert passed["method"] == "float pass"
    assert passed["ratio"] > 0
    assert (shared["method"], shared["ratio"] > 0) == ("shared prefixes", True)
    assert [row["method"] for row in rows] == ["ours", "one program each", "peer"]
    assert all(row["first"] > 0 and row["further"] > 0 for row in rows)
    assert "broken failed: TypeError: no int4" in capsys.readouterr().out
    first, further = ran[-2:]
    assert first.shape == further.shape == (3, 8, 2)
    assert not np.array_equal(first, further)
    assert set(np.unique(first)) <= {4.0, 8.0}


def test_growth_is_of_problems_that_have_an_answer(bench):
    module = bench("bench_growth")
    problem, budget = module.drawn_problem(30, 0)
    (row,) = [row for row in module.allocator_rows(["exact"], 1) if row["layers"] == 30]
    assert row["seconds"] > 0
    assert problem.loss.shape == (30, 8)
    assert np.all(np.diff(problem.loss[:, ::2], axis=1) < 0)
    assert problem.costs[0].min(axis=1).sum() < budget < problem.costs[0].max(axis=1).sum()
