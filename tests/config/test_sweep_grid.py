from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.config import RunConfig, expand, from_mapping, load
from qresearch.errors import ConfigError

BASE: dict[str, Any] = {"name": "a", "flow": "qat", "allocation": {"bits": [4, 4]}}


def runs(sweep: Any, **values: Any) -> tuple[RunConfig, ...]:
    return expand(from_mapping(BASE | values | {"sweep": sweep}))


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    path = folder / "my.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value).replace(str(path), "my.yaml").splitlines()


AXES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.lists(st.integers(0, 5), min_size=1, max_size=4),
        "qat.epochs": st.lists(st.integers(0, 5), min_size=1, max_size=3),
        "allocation.bits": st.lists(st.lists(st.integers(0, 32), min_size=2, max_size=2), min_size=1, max_size=3),
    },
)
ZIPPED = st.integers(1, 3).flatmap(
    lambda n: st.fixed_dictionaries(
        {},
        optional={
            "calibration.examples": st.lists(st.integers(1, 3), min_size=n, max_size=n),
            "evaluate.batch_size": st.lists(st.integers(1, 3), min_size=n, max_size=n),
        },
    )
)
ITEMS = st.lists(st.fixed_dictionaries({}, optional={"task": st.sampled_from("ab")}), min_size=1, max_size=3)


def _value(config: RunConfig, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(AXES, ZIPPED, ITEMS)
def test_runs_are_the_ordered_product_without_repeats(
    grid: dict[str, list[Any]], zipped: dict[str, list[Any]], items: list[dict[str, Any]]
) -> None:
    rows = [dict(zip(zipped, row)) for row in zip(*zipped.values())] if zipped else [{}]
    points = [
        {**dict(zip(grid, chosen)), **row, **item}
        for *chosen, row, item in itertools.product(*grid.values(), rows, items)
    ]
    expected = list(dict.fromkeys(runs(None, **_as_file(point))[0] for point in points))
    found = runs({"grid": grid, "zip": zipped, "list": items})
    assert list(found) == expected
    if all(len({str(v) for v in values}) == len(values) for values in grid.values()) and rows == items == [{}]:
        assert len(found) == math.prod(map(len, grid.values()))


def _as_file(point: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"allocation": dict(BASE["allocation"])}
    for key, value in point.items():
        *section, name = key.split(".")
        target = values.setdefault(section[0], {}) if section else values
        target[name] = value
    return values


def test_the_last_axis_is_the_fastest() -> None:
    found = runs({"grid": {"seed": [1, 0], "qat.epochs": [1, 2]}, "list": [{"task": "b"}, {"task": "a"}]})
    values = [(config.seed, config.qat.epochs, config.task) for config in found]
    assert values == list(itertools.product([1, 0], [1, 2], ["b", "a"]))


@pytest.mark.parametrize("sweep", [None, {}, {"grid": {}}, {"list": [{}]}, {"list": [{}, {}]}])
def test_a_sweep_of_nothing_is_one_run(sweep: Any) -> None:
    assert runs(sweep) == (expand(from_mapping(BASE))[0],)


def test_equal_runs_are_one_however_they_are_written() -> None:
    assert len(runs({"grid": {"qat.weight_decay": [0, 0.0, -0.0], "allocation": [{"bits": [4, 4]}]}})) == 1


def test_an_item_replaces_a_section_and_a_dotted_key_changes_it() -> None:
    allocation = {"bits": [4, 4], "allocator": "exact"}
    items: list[dict[str, Any]] = [{"allocation": {"budget": 3}}, {"allocation.cost": "bops"}]
    replaced, changed = runs({"list": items}, allocation=allocation)
    assert (replaced.allocation.allocator, replaced.allocation.bits) == ("uniform", None)
    assert (changed.allocation.allocator, changed.allocation.cost) == ("exact", "bops")


def test_the_file_needs_neither_bits_nor_budget_if_every_run_has_one() -> None:
    assert len(runs({"grid": {"allocation.budget": [2, 3]}}, allocation={})) == 2
    with pytest.raises(ConfigError, match="flow qat needs"):
        runs({"list": [{"allocation.budget": 2}, {}]}, allocation={})


SWEPT = """\
name: a
flow: qat
allocation:
  bits: [4, 4]
sweep:
  grid:
    seed: [0, 1]
    qat.epochs:
    - 1
    - 2
  list:
  - task: a
  - allocation: {budget: 3}
"""


def test_overrides_prevail_over_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(SWEPT)

    def count(*overrides: str) -> int:
        return len(expand(load(path, overrides)))

    assert count() == 8
    assert count("seed=7") == 4
    assert count("seed=7", "qat.epochs=1") == 2
    assert count("sweep.grid.seed=[1, 2, 3]") == 12
    assert count("sweep.grid.qat.batch_size=[1, 2, 3]") == 24
    assert count("sweep.list.0.data.name=x") == 8
    assert count("sweep.list=[{}]") == 4
    assert count("sweep=null") == 1
    assert {config.allocation.cost for config in expand(load(path, ["allocation.cost=bops"]))} == {"bops"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    - 2", "    - -2", "my.yaml:10  qat.epochs: expected a whole number >= 0, got -2"),
        ("qat.epochs", "qat.epoch", "my.yaml:8  qat.epoch: unknown key; did you mean 'epochs' or 'warmup_epochs'?"),
        ("budget: 3", "budgt: 3", "my.yaml:13  allocation.budgt: unknown key; did you mean 'budget'?"),
        ("    - 2\n", "    - 2\n    data:\n    - name: b\n    - nam: c\n", "my.yaml:13  data.nam: unknown key; did you "
         "mean 'name'?"),
        ("budget: 3", "budget: x", 'my.yaml:13  allocation.budget: expected a number > 0, got "x"'),
        ("allocation: {budget: 3}", "allocation.budget: 3", "my.yaml:13  allocation.budget: bits are given too; keep "
         "one of 'bits' and 'budget' and set the other to null"),
        ("{budget: 3}", "{cost: bops}", "my.yaml:13  allocation: flow qat needs 'bits: [weight_bits, input_bits]' or "
         "'budget'"),
        ("[0, 1]", "[]", "my.yaml:7  sweep.grid.seed: expected a list of at least one value, got []"),
        ("[0, 1]", "7", "my.yaml:7  sweep.grid.seed: expected a list, got 7"),
        ("  grid", "  gird", "my.yaml:6  sweep.gird: unknown key; did you mean 'grid'?"),
        ("seed: [0, 1]", "name: [b, c]", "my.yaml:7  sweep.grid.name: cannot be swept; it is the same for all runs of "
         "a file"),
        ("seed: [0, 1]", "allocation.cost: [a]", "my.yaml:7  sweep.grid.allocation.cost: the sweep also sets "
         "'allocation'; set each key in one place"),
        ("task: a", "seed: 3", "my.yaml:7  sweep.grid.seed: the sweep also sets 'seed'; set each key in one place"),
        ("  grid:\n", "  zip:\n    calibration.examples: [1]\n", "my.yaml:6  sweep.zip: expected lists of equal "
         'length, got {"calibration.examples": 1, "seed": 2, "qat.epochs": 2}'),
        ("  bits: [4, 4]", "  bit: [4, 4]", "my.yaml:4  allocation.bit: unknown key; did you mean 'bits'?"),
    ],
)  # fmt: skip
def test_errors_in_a_sweep_have_the_line_of_the_sweep(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in SWEPT
    lines = problems(tmp_path, SWEPT.replace(old, new, 1))
    assert expected in lines
    # The other key of a pair that clashes has a line too.
    assert len(lines) <= 2


def test_an_override_in_an_item_is_a_dotted_key_and_keeps_the_rest_of_the_section(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(SWEPT + "data: {folder: f}\n")
    found = expand(load(path, ["sweep.list.0.data.name=x"]))
    assert {(config.data.name, config.data.folder) for config in found} == {("x", "f"), ("digits", "f")}


def test_a_key_that_every_point_replaces_is_checked_too(tmp_path: Path) -> None:
    text = SWEPT.replace("flow: qat", "flow: qat\nseed: -1")
    assert problems(tmp_path, text) == [
        "my.yaml:3  seed: expected a whole number from 0 to 4294967295, got -1",
    ]


def test_the_number_of_runs_is_bounded(tmp_path: Path) -> None:
    grid = {f"quantize.menu.{i}.{j}": list(range(30)) for i in range(5) for j in range(2)}
    text = SWEPT.replace("    seed: [0, 1]", "".join(f"    {key}: {values}\n" for key, values in grid.items()))
    assert problems(tmp_path, text) == [f"my.yaml:5  sweep: expected at most 10000 runs, got {30**10 * 4}"]


def test_a_number_of_runs_that_python_cannot_print_is_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"sweep: expected at most 10000 runs, got more than 10\^18$"):
        runs({"grid": {f"seed.{i}": [1, 2] for i in range(15_000)}})


def test_overrides_of_the_sweep_are_named_as_such(tmp_path: Path) -> None:
    assert problems(tmp_path, SWEPT, "sweep.grid.seed=[-1]", "sweep.zip={}") == [
        "--set  seed: expected a whole number from 0 to 4294967295, got -1",
    ]
    assert problems(tmp_path, SWEPT, "qat.epochs=-1") == [
        "--set  qat.epochs: expected a whole number >= 0, got -1",
    ]
    assert problems(tmp_path, SWEPT, "sweep.grd=1") == ["--set  sweep.grd: unknown key; did you mean 'grid'?"]
