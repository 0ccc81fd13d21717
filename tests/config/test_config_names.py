from __future__ import annotations

from pathlib import Path

import pytest

from qresearch.config import check_names, expand, from_mapping, load
from qresearch.errors import ConfigError

KNOWN = {
    "data.name": {"digits", "cifar10"},
    "model.name": {"digits_cnn": object(), "resnet20": object()},
    "quantize.weight.quantizer": {"minmax", "lsq"},
    "quantize.input.quantizer": {"minmax", "pact"},
    "quantize.weight.range": {"auto", "mse", "minmax"},
    "allocation.allocator": ["uniform", "exact"],
}
TEXT = """\
name: a
flow: ptq
data: {name: digts}
quantize:
  weight: {quantizer: lsqq}
  rules:
  - pattern: a
    weight: {quantizer: lsqs}
    input: {quantizer: packt}
  - {pattern: b, weight: float, input: default}
allocation: {bits: [4, 4]}
sweep:
  grid:
    model.name:
    - resnet20
    - resnt20
"""


def test_unknown_names_have_line_and_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(TEXT)
    with pytest.raises(ConfigError) as caught:
        expand(load(path, ["quantize.weight.range=msee"]), KNOWN)
    assert str(caught.value).replace(str(path), "my.yaml").splitlines() == [
        "my.yaml:3  data.name: unknown name \"digts\"; did you mean 'digits'?",
        "my.yaml:5  quantize.weight.quantizer: unknown name \"lsqq\"; did you mean 'lsq'?",
        "my.yaml:8  quantize.rules.0.weight.quantizer: unknown name \"lsqs\"; did you mean 'lsq'?",
        "my.yaml:9  quantize.rules.0.input.quantizer: unknown name \"packt\"; did you mean 'pact'?",
        "my.yaml:16  model.name: unknown name \"resnt20\"; did you mean 'resnet20'?",
        "--set  quantize.weight.range: unknown name \"msee\"; did you mean 'mse'?",
    ]
    with pytest.raises(ConfigError) as caught:
        check_names(expand(load(path)), KNOWN)
    assert str(caught.value).splitlines() == [
        "a  data.name: unknown name \"digts\"; did you mean 'digits'?",
        "a  quantize.weight.quantizer: unknown name \"lsqq\"; did you mean 'lsq'?",
        "a  quantize.rules.0.weight.quantizer: unknown name \"lsqs\"; did you mean 'lsq'?",
        "a  quantize.rules.0.input.quantizer: unknown name \"packt\"; did you mean 'pact'?",
        "a  model.name: unknown name \"resnt20\"; did you mean 'resnet20'?",
    ]


def test_known_names_pass_and_unlisted_keys_are_free() -> None:
    sweep = from_mapping({"name": "a", "flow": "float", "task": "anything"})
    check_names(expand(sweep, KNOWN), KNOWN)
    check_names(expand(sweep, {}), {})


@pytest.mark.parametrize("key", ["data.nam", "dat.name", "name.name", ""])
def test_names_for_a_key_that_no_config_has_are_a_defect_of_the_caller(key: str) -> None:
    with pytest.raises(ValueError, match="no config has a key"):
        check_names([], {key: {"a"}})
