"""A package from outside, installed by pip, is in every list, in the conformance suites and in a sweep's workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from qresearch.errors import ConfigError
from qresearch.registry import Registry
from qresearch.results import list_runs, open_run

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "external"
CONFIG = """\
name: outside
data: {name: wine}
model: {name: tanh_mlp}
float: {epochs: 10, batch_size: 25, learning_rate: 1e-2}
quantize:
  weight: {quantizer: wrpn, granularity: per_channel, range: own}
  input: {quantizer: wrpn, range: own}
  menu: [[2, 2], [4, 4], [8, 8]]
calibration: {examples: 64}
sensitivity: {examples: 30}
evaluate: {batch_size: 16}
flow: ptq
allocation: {allocator: uniform_or_best, budget: 4}
sweep:
  list:
    - {flow: float}
    - {allocation: {allocator: uniform_or_best, budget: 4}}
    - {allocation: {allocator: exact, budget: 4}}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip installed the package into. Its wheel is written here: that takes no build tools."""
    folder = tmp_path_factory.mktemp("installed")
    facts = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    wheel, info = folder / "qresearch_example-1.0-py3-none-any.whl", "qresearch_example-1.0.dist-info"
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in facts["entry-points"].items()
    )
    files = {f"qresearch_example/{path.name}": path.read_text() for path in (SOURCE / "qresearch_example").glob("*.py")}
    recipe = (ROOT / "CONTRIBUTING.md").read_text().split("## Adding a quantizer")[1]
    files["qresearch_example/wrpn.py"] = re.search(r"```python\n(.*?)```", recipe, re.DOTALL)[1]
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {facts['name']}\nVersion: {facts['version']}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": points,
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    site = folder / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return site


def run(installed, *command, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("engine", ["inline", pytest.param("local", marks=pytest.mark.slow)])
def test_a_sweep_uses_all_four_without_a_change_here(installed, tmp_path, engine):
    config = tmp_path / "outside.yaml"
    config.write_text(CONFIG)
    settings = ("--engine", engine, "--workers", "1", "--set", f"output={tmp_path / 'out'}")
    done = run(installed, "-m", "qresearch.cli", "sweep", str(config), *settings)
    assert done.returncode == 0, done.stderr
    (row,) = list_runs(tmp_path / "out")
    stored = open_run(next((tmp_path / "out").iterdir()))
    records = stored.records().records
    assert row.done == len(records) == 3
    assert {(record.model, record.data) for record in records} == {("tanh_mlp", "wine")}
    assert {record.quantizer["weight"] for record in records} == {None, "wrpn"}
    assert {record.environment["versions"]["qresearch-example"] for record in records} == {"1.0"}
    assert min(record.metrics["test"]["score"] for record in records) > 0.7
    assert "uniform_or_best" in done.stdout
    named = run(installed, "-m", "qresearch.cli", "list", "quantizers").stdout
    assert "https://arxiv.org/abs/1709.01134" in named


@pytest.mark.slow
def test_the_conformance_suite_runs_over_its_allocator(installed):
    """Of its quantizer too: see tests/quantizers/test_recipe.py."""
    suite = str(ROOT / "tests" / "allocation" / "test_allocators.py")
    done = run(installed, "-m", "pytest", "-q", "-n", "0", "-k", "uniform_or_best", "-m", "not slow", suite)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50


class Package:
    name, version = "somebody", "2.0"


class Point:
    def __init__(self, name, load):
        self.name, self.value, self.dist, self.load = name, "somebody:thing", Package, load


def broken():
    raise ImportError("no module named torch\nand more")


def registry(*points):
    found = Registry("methods", {"ours": 1})
    found._points = {point.name: point for point in points}
    return found


def test_names_are_known_before_anything_is_imported():
    found = registry(Point("theirs", broken))
    assert list(found) == ["ours", "theirs"]
    assert "theirs" in found
    assert len(found) == 2
    with pytest.raises(ConfigError) as caught:
        found["theirs"]
    assert str(caught.value) == (
        "methods: 'theirs' of the package somebody 2.0 cannot be loaded (ImportError: no module named torch)"
    )


def test_what_is_loaded_is_loaded_once():
    calls = []
    found = registry(Point("theirs", lambda: calls.append(1) or "thing"))
    assert (found["theirs"], found["theirs"], dict(found)) == ("thing", "thing", {"ours": 1, "theirs": "thing"})
    assert calls == [1]


def test_a_name_that_is_taken_is_said_and_not_replaced():
    found = registry(Point("ours", lambda: 2))
    with pytest.raises(ConfigError, match=r"'ours' of the package somebody 2\.0 is a name that is taken"):
        found["ours"]
    found["ours"] = 3  # by a script, which means it
    assert found["ours"] == 3
    with pytest.raises(KeyError):
        found["nobody's"]
