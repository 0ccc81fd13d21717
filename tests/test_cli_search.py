from __future__ import annotations

import pytest
from small_sweep import SMALL, settings, stored, write_small

from qresearch.cli import main


def test_search_lets_allocators_choose_for_budgets(tmp_path, capsys):
    config, output = write_small(tmp_path), tmp_path / "out"
    arguments = ["search", str(config), "--budgets", "3,4.5", "--allocators", "exact,greedy"]
    assert main([*arguments, *settings(f"output={output}", "float.epochs=0")]) == 0
    assert "4 trials run" in capsys.readouterr().out
    (folder,) = output.iterdir()
    assert folder.name.startswith("small-search-")
    records = stored(output)
    assert set(records) == {f"ptq-lsq-{name}-{budget}bits-seed0" for name in ("exact", "greedy") for budget in (3, 4.5)}
    for record in records.values():
        assert record["flow"] == "ptq"
        assert record["costs"]["average_bits"] <= record["allocation"]["budget"]["average_bits"]


def test_search_keeps_the_seeds_of_the_config_and_takes_any_cost(tmp_path, capsys):
    config, output = write_small(tmp_path), tmp_path / "out"
    more = settings(f"output={output}", "float.epochs=0", "sweep={grid: {seed: [0, 1]}}")
    assert main(["search", str(config), "--budgets", "8", "--cost", "size", *more]) == 0
    records = stored(output)
    assert set(records) == {"ptq-lsq-exact-8size-seed0", "ptq-lsq-exact-8size-seed1"}
    assert all(record["costs"]["size"] <= 8 for record in records.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", "3,x"], "--budgets: expected numbers such as 2.5,3,4, got '3,x'"),
        (["--budgets", ""], "--budgets: expected numbers such as 2.5,3,4, got ''"),
        (["--budgets", "-1"], "allocation.budget: expected a number > 0, got -1.0"),
        (["--budgets", "nan"], "allocation.budget: expected a number > 0"),
        (["--budgets", "inf"], "allocation.budget: expected a number > 0"),
        (
            ["--budgets", "1.5"],
            "1.5 bits (average_bits) is below the cheapest allocation of the menus; give at least 2",
        ),
        (["--budgets", "4", "--allocators", "exat"], "unknown name \"exat\"; did you mean 'exact'?"),
        (["--budgets", "4", "--cost", "bytes"], 'unknown name "bytes"'),
    ],
)
def test_search_refuses(tmp_path, capsys, arguments, message):
    output = tmp_path / "out"
    assert main(["search", str(write_small(tmp_path)), *arguments, *settings(f"output={output}")]) == 2
    assert message in capsys.readouterr().err.splitlines()[0]
    assert not output.exists()


def test_search_of_a_config_with_the_longest_name(tmp_path, capsys):
    text = SMALL.replace("name: small", f"name: {'a' * 64}")
    arguments = ["search", str(write_small(tmp_path, text)), "--budgets", "4"]
    assert main([*arguments, *settings(f"output={tmp_path / 'out'}", "float.epochs=0")]) == 0
