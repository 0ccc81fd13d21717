from __future__ import annotations

from pathlib import Path

import pytest

from qresearch.config import RunConfig, expand, load
from qresearch.errors import ConfigError

VALID = """\
# Question: does the loader read this?
name: my_run
flow: qat
quantize:
  weight: {quantizer: lsq}
float:
  learning_rate: 1e-3
allocation:
  bits: [4, 4]
"""
TOP_LEVEL = sorted({field.alias or name for name, field in RunConfig.model_fields.items()} | {"sweep"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(folder: Path, text: str = VALID, *overrides: str) -> tuple[RunConfig, ...]:
    (folder / "my.yaml").write_text(text)
    return expand(load("my.yaml", overrides))


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        runs(folder, text, *overrides)
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


def test_a_valid_file_is_one_run(folder: Path) -> None:
    (config,) = runs(folder)
    assert (config.name, config.flow, config.float_training.learning_rate) == ("my_run", "qat", 1e-3)
    assert (config.quantize.weight.quantizer, config.quantize.weight.granularity) == ("lsq", "per_channel")


def test_all_problems_are_listed_at_once_with_line_and_key(folder: Path) -> None:
    text = (
        "name: a\nflow: ptq\nquantize:\n  menu:\n  - [4, 4]\n  weight:\n    quantzer: lsq\nfloat:\n"
        "  learning_rate: fast\nallocation:\n  bits: [4, 4]\n  budget: 3\n"
    )
    assert problems(folder, text, "evaluate.bach_size=3") == [
        "my.yaml:7  quantize.weight.quantzer: unknown key; did you mean 'quantizer'?",
        'my.yaml:9  float.learning_rate: expected a number > 0, got "fast"',
        "my.yaml:12  allocation.budget: bits are given too; keep one of 'bits' and 'budget' and set the other to null",
        "--set  evaluate.bach_size: unknown key; did you mean 'batch_size'?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["my.yaml:1  the file is empty; expected keys such as 'name: my_run'"]),
        ("# only a note\n", ["my.yaml:1  the file is empty; expected keys such as 'name: my_run'"]),
        ("just words\n", ["my.yaml:1  the file holds \"just words\"; expected keys such as 'name: my_run'"]),
        ("name: a\nflow: [\n", ["my.yaml:3  not valid YAML: expected the node content, but found '<stream end>'"]),
        ("name: a\n", ["my.yaml:1  flow: missing; it has no default"]),
        ("flow: ptq\n", [f"my.yaml:1  {line}" for line in ("name: missing; it has no default", "allocation: flow ptq "
         "needs 'bits: [weight_bits, input_bits]' or 'budget'")]),
        ("name: a\nflow: qat\nallocation:\n  cost: bops\n", ["my.yaml:3  allocation: flow qat needs 'bits: "
         "[weight_bits, input_bits]' or 'budget'"]),
        (VALID + "qux: 1\n", [f"my.yaml:10  qux: unknown key; known: {', '.join(TOP_LEVEL)}"]),
        (VALID + "evaluate: {qux: 1}\n", ["my.yaml:10  evaluate.qux: unknown key; known: batch_size, examples"]),
    ],
)  # fmt: skip
def test_messages(folder: Path, text: str, expected: list[str]) -> None:
    assert problems(folder, text) == expected


def test_problems_of_form_and_of_content_are_listed_together(folder: Path) -> None:
    text = "name: a\nflow: ptq\nseed: &x 1\nseed: -1\nallocation:\n  bits: *x\nqat: {epoch: 2}\n"
    assert problems(folder, text, "data.name=!x a", "task=") == [
        "my.yaml:3  seed: anchors (&) and aliases (*) are not used here; write the value out",
        "my.yaml:4  seed: duplicate key; first given on line 3",
        "my.yaml:6  allocation.bits: anchors (&) and aliases (*) are not used here; write the value out",
        "my.yaml:7  qat.epoch: unknown key; did you mean 'epochs' or 'warmup_epochs'?",
        "--set  data.name: tags (!) are not used here; write the value plainly",
        "--set  task: expected a name of letters, digits, '.', '_', '-', got null",
    ]


def test_many_problems_are_cut(folder: Path) -> None:
    lines = problems(folder, VALID + "".join(f"key{i}: 1\n" for i in range(5000)))
    assert len(lines) == 101
    assert lines[-1] == "my.yaml  and 1 more problems"


def test_a_long_value_is_shortened(folder: Path) -> None:
    (line,) = problems(folder, VALID + f"seed: {'x' * 900_000}\n")
    assert len(line) < 150


def test_overrides_are_values_of_yaml(folder: Path) -> None:
    (config,) = runs(
        folder,
        VALID,
        "quantize.menu=[[4,4],[8,8]]",
        "qat.learning_rate=1e-2",
        "data.folder=~/data",
        "model.weights=",
        "quantize.input={quantizer: pact, signed: false}",
        "task=no",
    )
    assert config.quantize.menu == ((4, 4), (8, 8))
    assert config.qat.learning_rate == 1e-2
    assert (config.data.folder, config.model.weights, config.task) == ("~/data", None, "no")
    assert (config.quantize.input.quantizer, config.quantize.input.signed) == ("pact", False)


def test_overrides_reach_into_lists_and_the_last_one_counts(folder: Path) -> None:
    text = VALID.replace("quantize:\n", "quantize:\n  rules:\n  - {pattern: a}\n  - {pattern: b, weight: float}\n")
    (config,) = runs(folder, text, "quantize.rules.1.weight.signed=true", "seed=1", "seed=2")
    assert config.quantize.rules[1].weight.signed is True  # type: ignore[union-attr]
    assert (config.quantize.rules[0].pattern, config.quantize.rules[1].pattern, config.seed) == ("a", "b", 2)


def test_an_override_cures_an_error_of_the_file(folder: Path) -> None:
    assert len(runs(folder, VALID.replace("1e-3", "fast"), "float.learning_rate=1e-3")) == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", '--set  expected key=value, got "seed"'),
        ("=3", '--set  expected key=value, got "=3"'),
        ("", '--set  expected key=value, got ""'),
        ("se\ned=3", '--set  expected key=value, got "se\\ned=3"'),
        ("sed=3", "--set  sed: unknown key; did you mean 'seed' or 'sweep'?"),
        ("quantize.weight.quantzer=lsq", "--set  quantize.weight.quantzer: unknown key; did you mean 'quantizer'?"),
        ("float.learning_rate=fast", '--set  float.learning_rate: expected a number > 0, got "fast"'),
        ("seed=[1", "--set  seed: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed=1\n---\n2", "--set  seed: a second document ('---'); expected one per file"),
        ("seed.deep=1", '--set  seed: expected a whole number from 0 to 4294967295, got {"deep": 1}'),
        ("allocation.budget=3", "--set  allocation.budget: bits are given too; keep one of 'bits' and 'budget' and "
         "set the other to null"),
        ("allocation.bits=null", "--set  allocation: flow qat needs 'bits: [weight_bits, input_bits]' or 'budget'"),
        ("." * 100_000 + "=1", f"--set  : unknown key; known: {', '.join(TOP_LEVEL)}"),
    ],
)  # fmt: skip
def test_wrong_overrides(folder: Path, override: str, expected: str) -> None:
    assert problems(folder, VALID, override) == [expected]
