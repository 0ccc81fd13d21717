"""``sweep.suggest``: what is accepted, what is refused and where, and the runs that proposals become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qresearch.config import (
    Domain,
    expand,
    from_mapping,
    load,
    suggest_ends,
    suggested,
    suggestion_of,
    sweep_identity,
)
from qresearch.errors import ConfigError

TEXT = """\
name: a
flow: qat
allocation:
  bits: [8, 8]
sweep:
  grid:
    seed: [0, 1]
  suggest:
    name: random
    trials: 40
    space:
      qat.learning_rate: {log: [1e-4, 1e-1]}
      allocation.bits: [[2, 2], [4, 4]]
      qat.weight_decay:
        uniform: [0, 0.1]
      qat.epochs: {int: [1, 5]}
"""
ALONE = TEXT.replace("  grid:\n    seed: [0, 1]\n", "")


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value).replace(str(path), "my.yaml").splitlines()


def test_a_space_is_read(tmp_path: Path) -> None:
    suggest = suggestion_of(load(written(tmp_path)))
    assert suggest is not None
    assert (suggest.name, suggest.trials, suggest.batch, suggest.seed) == ("random", 40, 8, 0)
    assert suggest.space == {
        "qat.learning_rate": Domain("log", (1e-4, 1e-1)),
        "allocation.bits": Domain("choice", ([2, 2], [4, 4])),
        "qat.weight_decay": Domain("uniform", (0.0, 0.1)),
        "qat.epochs": Domain("int", (1, 5)),
    }
    assert suggestion_of(from_mapping({"name": "a", "flow": "float"})) is None


def test_fixed_trials_are_those_of_grid_zip_and_list(tmp_path: Path) -> None:
    assert [run.seed for run in expand(load(written(tmp_path)))] == [0, 1]
    assert expand(load(written(tmp_path, ALONE))) == ()
    assert len(expand(load(written(tmp_path, ALONE), ["sweep.list=[{}]"]))) == 1
    baseline = expand(load(written(tmp_path, ALONE), ["sweep.list=[{allocation.bits: [6, 6]}]"]))
    assert [run.allocation.bits for run in baseline] == [(6, 6)], "a fixed trial beside a space of the same key"


def test_a_proposal_is_the_file_with_its_settings_and_then_the_command_line(tmp_path: Path) -> None:
    sweep = load(written(tmp_path), ["qat.epochs=7", "qat.batch_size=16"])
    run = suggested(sweep, {"qat.learning_rate": 0.01, "allocation.bits": [2, 2], "qat.epochs": 3})
    assert (run.qat.learning_rate, run.allocation.bits, run.seed) == (0.01, (2, 2), 0)
    assert (run.qat.epochs, run.qat.batch_size) == (7, 16)


def test_a_proposal_that_cannot_be_has_the_line_of_the_space(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(ConfigError) as caught:
        suggested(load(path), {"qat.learning_rate": -1.0})
    assert str(caught.value) == f"{path}:12  qat.learning_rate: expected a number > 0, got -1.0"
    with pytest.raises(ConfigError, match=r"my.yaml:\d+  allocation.budget: bits are given too"):
        suggested(load(path), {"allocation.budget": 3.0})


def test_the_ends_are_all_choices_and_bounds_one_key_at_a_time(tmp_path: Path) -> None:
    ends = suggest_ends(load(written(tmp_path)))
    assert len(ends) == 1 + 4  # the first of every key, and for each of four keys its other value
    assert {run.qat.epochs for run in ends} == {1, 5}
    assert {run.qat.learning_rate for run in ends} == {1e-4, 1e-1}
    assert {run.allocation.bits for run in ends} == {(2, 2), (4, 4)}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("trials: 40", "trails: 40", "my.yaml:10  sweep.suggest.trails: unknown key; did you mean 'trials'?"),
        ("    trials: 40\n", "", "my.yaml:8  sweep.suggest.trials: missing; it has no default"),
        ("trials: 40", "trials: 0", "my.yaml:10  sweep.suggest.trials: expected a whole number > 0, got 0"),
        ("trials: 40", "trials: 9999", "my.yaml:5  sweep: expected at most 10000 runs, got 10001"),
        ("name: random", "name: ../x", "my.yaml:9  sweep.suggest.name: expected a name of letters, digits, '.', '_', "
         "'-', got \"../x\""),
        ("{log: [1e-4, 1e-1]}", "{log: [0, 1]}", "my.yaml:12  sweep.suggest.space.qat.learning_rate: expected a list "
         "of choices, or one of {uniform: [low, high]}, {log: [low, high]}, {int: [low, high]} with low < high (log: "
         '0 < low), got {"log": [0, 1]}'),
        ("{log: [1e-4, 1e-1]}", "{uniform: [0, 1]}", "my.yaml:12  qat.learning_rate: expected a number > 0, got 0.0"),
        ("uniform: [0, 0.1]", "uniform: [-1, 0.1]", "my.yaml:15  qat.weight_decay: expected a number >= 0, got -1.0"),
        ("{int: [1, 5]}", "{uniform: [1, 5]}", "my.yaml:16  qat.epochs: expected a whole number >= 0, got 1.0"),
        ("[[2, 2], [4, 4]]", "[[2, 2], [4]]", "my.yaml:13  allocation.bits: expected a pair [weight_bits, input_bits] "
         "of whole numbers from 0 to 32, got [4]"),
        ("qat.epochs", "qat.epoch", "my.yaml:16  qat.epoch: unknown key; did you mean 'epochs' or 'warmup_epochs'?"),
        ("qat.epochs: {", "name: {", "my.yaml:16  sweep.suggest.space.name: cannot be swept; it is the same for all "
         "runs of a file"),
        ("qat.epochs: {int: [1, 5]}", "qat: [{epochs: 3}]", "my.yaml:12  sweep.suggest.space.qat.learning_rate: the "
         "sweep also sets 'qat'; set each key in one place"),
        ("[[2, 2], [4, 4]]", "[[2, 2], [4, 4]]\n      allocation.budget: [3, 4]", "my.yaml:14  allocation.budget: "
         "bits are given too; keep one of 'bits' and 'budget' and set the other to null"),
    ],
)  # fmt: skip
def test_errors_have_the_line_of_the_space(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in TEXT
    lines = problems(tmp_path, TEXT.replace(old, new, 1))
    assert expected in lines
    assert len(lines) <= 2


def test_an_empty_space_and_too_many_choices(tmp_path: Path) -> None:
    start = TEXT[: TEXT.index("    space:")]
    assert problems(tmp_path, start + "    space: {}\n") == [
        "my.yaml:11  sweep.suggest.space: expected a mapping of at least one key, got {}"
    ]
    many = f"    space: {{seed: {list(range(10_001))}}}\n"
    assert problems(tmp_path, start.replace("    seed: [0, 1]", "    qat.epochs: [1]") + many) == [
        "my.yaml:11  sweep.suggest.space: expected at most 10000 choices, got 10001"
    ]


def test_names_are_compared_with_the_registry(tmp_path: Path) -> None:
    path = written(
        tmp_path, TEXT.replace("random", "radom").replace("[[2, 2], [4, 4]]", "[[2, 2]]\n      task: [a, b]")
    )
    with pytest.raises(ConfigError) as caught:
        expand(load(path), {"sweep.suggest.name": {"random"}, "task": {"a", "classification"}})
    assert str(caught.value).replace(str(path), "my.yaml").splitlines() == [
        "my.yaml:9  sweep.suggest.name: unknown name \"radom\"; did you mean 'random'?",
        'my.yaml:14  task: unknown name "b"; known: a, classification',
    ]
    with pytest.raises(ValueError, match="no config has a key"):
        expand(load(written(tmp_path)), {"sweep.suggest.nam": {"a"}})


def test_the_command_line_sets_the_space(tmp_path: Path) -> None:
    settings = ["sweep.suggest.space.qat.epochs={int: [2, 3]}", "sweep.suggest.trials=50", "sweep.grid=null"]
    suggest = suggestion_of(load(written(tmp_path, ALONE), settings[:2]))
    assert suggest is not None
    assert (suggest.trials, suggest.space["qat.epochs"]) == (50, Domain("int", (2, 3)))
    assert problems(tmp_path, TEXT, "sweep.suggest.space.qat.epochs={int: [3, 2]}")[0].startswith(
        "--set  sweep.suggest.space.qat.epochs: expected a list of choices"
    )


def test_more_trials_are_the_same_run_folder(tmp_path: Path) -> None:
    identity = sweep_identity(load(written(tmp_path)))
    for changed in ("trials: 41", "trials: 400"):
        assert sweep_identity(load(written(tmp_path, TEXT.replace("trials: 40", changed)))) == identity
    assert sweep_identity(load(written(tmp_path), ["sweep.suggest.trials=99"])) == identity
    other: Any = sweep_identity(load(written(tmp_path, TEXT.replace("[8, 8]", "[6, 6]"))))
    assert other != identity
