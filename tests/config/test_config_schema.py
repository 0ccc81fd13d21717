from __future__ import annotations

import subprocess
import sys
from typing import Any

import pydantic
import pytest

from qresearch.config import RunConfig, SiteConfig, expand, from_mapping, resolved
from qresearch.errors import ConfigError

MINIMAL: dict[str, Any] = {"name": "a", "flow": "float"}


def run(**values: Any) -> RunConfig:
    return expand(from_mapping(MINIMAL | values))[0]


def problems(**values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        run(**values)
    return [line.removeprefix("config  ") for line in str(caught.value).splitlines()]


def test_jax_is_not_imported() -> None:
    script = "import sys, qresearch.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_defaults_are_the_documented_ones() -> None:
    train = {
        "epochs": 20,
        "examples": None,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "optimizer": "adam",
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "clip_norm": None,
        "augment": "none",
    }
    site = {
        "quantizer": "minmax",
        "granularity": "per_tensor",
        "group_size": None,
        "signed": None,
        "symmetric": True,
        "range": "auto",
        "mask": None,
        "narrow": False,
        "rounding": "half_even",
        "options": [],
    }
    assert resolved(run()) == {
        "name": "a",
        "seed": 0,
        "task": "classification",
        "data": {"name": "digits", "folder": None},
        "model": {"name": "digits_cnn", "weights": None},
        "float": train,
        "quantize": {
            "weight": site | {"granularity": "per_channel"},
            "input": site,
            "menu": [[2, 2], [3, 3], [4, 4], [6, 6], [8, 8]],
            "tied": [],
            "rules": [],
            "keep": {"first": False, "last": False, "most_sensitive": 0, "option": [8, 8]},
        },
        "calibration": {"examples": 256},
        "sensitivity": {"method": "loss_increase", "examples": 512, "options": [], "joint": 16},
        "flow": "float",
        "ptq": [],
        "qat": train,
        "search": train | {"epochs": 10},
        "allocation": {
            "allocator": "uniform",
            "options": [],
            "refine": 0,
            "bits": None,
            "budget": None,
            "cost": "average_bits",
            "limits": [],
        },
        "costs": [],
        "evaluate": {"batch_size": 500, "examples": None},
        "report": {"cost": "average_bits", "reference": None},
        "engine": {"name": "local", "workers": None, "attempts": 3, "timeout": None, "options": []},
        "checkpoints": {"every": 1000, "keep": 2},
        "trackers": [],
        "output": "results",
    }


def test_a_run_is_frozen_and_hashable() -> None:
    config = run()
    hash(config)
    with pytest.raises(pydantic.ValidationError):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "A"}, "name: expected up to 64 of a-z"),
        ({"name": "a..b"}, "name: expected up to 64 of a-z"),
        ({"name": "a" * 65}, "name: expected up to 64 of a-z"),
        ({"name": "../a"}, "name: expected up to 64 of a-z"),
        ({"name": "a\n"}, "name: expected up to 64 of a-z"),
        ({"model": {"name": "os.system()"}}, "model.name: expected a name of letters, digits, '.', '_', '-'"),
        ({"model": {"name": "../secret"}}, "model.name: expected a name of letters"),
        ({"ptq": "gptq"}, 'ptq: expected a list, got "gptq"'),
        ({"ptq": [{"name": "gptq", "damping": 0.1}]}, "ptq.0.damping: unknown key"),
        ({"ptq": [7]}, "ptq.0: expected a mapping of keys, got 7"),
        ({"quantize": {"keep": {"first": 1}}}, "quantize.keep.first: expected true or false, got 1"),
        ({"seed": True}, "seed: expected a whole number from 0 to 4294967295, got true"),
        ({"seed": 2**32}, "seed: expected a whole number from 0 to 4294967295, got 4294967296"),
        ({"seed": 1.0}, "seed: expected a whole number from 0 to 4294967295, got 1.0"),
        ({"seed": "1"}, 'seed: expected a whole number from 0 to 4294967295, got "1"'),
        ({"output": ""}, 'output: expected text, got ""'),
        ({"output": 3}, "output: expected text, got 3"),
        ({"data": None}, "data: expected a mapping of keys, got null"),
        ({"data": []}, "data: expected a mapping of keys, got []"),
        ({"data": {"nam": "x"}}, "data.nam: unknown key; did you mean 'name'?"),
        ({"float": {"epochs": -1}}, "float.epochs: expected a whole number >= 0, got -1"),
        ({"float": {"learning_rate": 0}}, "float.learning_rate: expected a number > 0, got 0"),
        ({"float": {"learning_rate": float("nan")}}, "float.learning_rate: expected a number > 0, got NaN"),
        ({"float": {"learning_rate": 10**400}}, "float.learning_rate: expected a number > 0, got 1000"),
        ({"qat": {"momentum": 1}}, "qat.momentum: expected a number >= 0 and < 1, got 1"),
        ({"qat": {"weight_decay": float("inf")}}, "qat.weight_decay: expected a number >= 0, got Infinity"),
        ({"qat": {"optimizer": "adm"}}, "qat.optimizer: expected 'adam', 'sgd' or 'adamw', got \"adm\""),
        ({"flow": None}, "flow: expected 'float', 'ptq' or 'qat', got null"),
        ({"quantize": {"menu": []}}, "quantize.menu: expected a list of one or more different pairs, got []"),
        ({"quantize": {"menu": [[4, 4], [4, 4]]}}, "quantize.menu: expected a list of one or more different pairs"),
        ({"quantize": {"menu": 4}}, "quantize.menu: expected a list, got 4"),
        ({"quantize": {"menu": [[4, 33]]}}, "quantize.menu.0: expected a pair [weight_bits, input_bits] of whole"),
        ({"quantize": {"menu": [[4, 4], [4]]}}, "quantize.menu.1: expected a pair"),
        ({"quantize": {"menu": [[4, 4.0]]}}, "quantize.menu.0: expected a pair"),
        ({"quantize": {"rules": {}}}, "quantize.rules: expected a list, got {}"),
        ({"quantize": {"rules": [{}]}}, "quantize.rules.0.pattern: missing; it has no default"),
        (
            {"quantize": {"rules": [{"pattern": "a", "input": "flot"}]}},
            "quantize.rules.0.input: expected 'float', 'default' or the keys of a site, got \"flot\"",
        ),
        (
            {"quantize": {"rules": [{"pattern": "a", "weight": {"quantzer": "lsq"}}]}},
            "quantize.rules.0.weight.quantzer: unknown key; did you mean 'quantizer'?",
        ),
        (
            {"quantize": {"weight": {"granularity": "per_group"}}},
            "quantize.weight.group_size: give it with 'granularity: per_group', and only then",
        ),
        ({"quantize": {"input": {"group_size": 4}}}, "quantize.input.group_size: give it with"),
        (
            {"quantize": {"weight": {"granularity": "per_token"}}},
            "quantize.weight.granularity: expected 'per_tensor', 'per_channel' or 'per_group', got \"per_token\"",
        ),
        ({"quantize": {"input": {"mask": False}}}, "quantize.input.mask: expected 'rounded', 'unrounded' or 'none'"),
        ({"allocation": {"bits": [4, 4], "budget": 4}}, "allocation.budget: bits are given too; keep one of"),
        ({"allocation": {"budget": -1}}, "allocation.budget: expected a number > 0, got -1"),
        ({"flow": "ptq"}, "allocation: flow ptq needs 'bits: [weight_bits, input_bits]' or 'budget'"),
        ({"sweeep": {}}, "sweeep: unknown key; did you mean 'sweep'"),
        ({"float_training": {}}, "float_training: unknown key; did you mean"),
    ],
)
def test_each_wrong_value_is_one_line_in_plain_words(values: dict[str, Any], expected: str) -> None:
    (line,) = problems(**values)
    assert line.startswith(expected)
    assert not any(word in line for word in ("pydantic", "http", "Input should", "validation", "\0"))


def test_errors_in_other_sections_do_not_hide_a_missing_budget() -> None:
    lines = problems(flow="qat", seed=-1, evaluate={"bach_size": 3})
    assert sorted(line.split(":")[0] for line in lines) == ["allocation", "evaluate.bach_size", "seed"]


def test_rules_say_only_what_differs() -> None:
    weight = {"quantizer": "lsq", "range": "max", "granularity": "per_group", "group_size": 8}
    rules = [
        {"pattern": "a", "weight": {"quantizer": "minmax"}, "input": {"signed": True}},
        {"pattern": "b", "weight": {"granularity": "per_tensor"}, "input": "float", "menu": [[8, 8]]},
    ]
    first, second = run(quantize={"weight": weight, "input": {"quantizer": "pact"}, "rules": rules}).quantize.rules
    assert first.weight.model_dump() == SiteConfig(**weight | {"quantizer": "minmax"}).model_dump()  # type: ignore
    assert first.input == SiteConfig(quantizer="pact", signed=True)
    assert second.weight.model_dump() == SiteConfig(quantizer="lsq", range="max").model_dump()  # type: ignore
    assert (second.input, second.menu) == ("float", ((8, 8),))
    assert (first.menu, first.pattern) == (None, "a")


def test_tokens_are_a_granularity_of_inputs() -> None:
    config = run(
        quantize={"input": {"granularity": "per_token"}, "rules": [{"pattern": "a", "input": {"signed": True}}]}
    )
    assert config.quantize.input.granularity == "per_token"
    assert config.quantize.rules[0].input == SiteConfig(granularity="per_token", signed=True)


def test_an_error_in_the_default_site_is_not_repeated_for_rules() -> None:
    rules = [{"pattern": "a", "weight": {"signed": True}}]
    assert len(problems(quantize={"weight": {"range": 3}, "rules": rules})) == 1


def test_a_resolved_config_is_a_config() -> None:
    config = run(
        flow="qat",
        allocation={"bits": [4, 8]},
        quantize={"rules": [{"pattern": "a", "weight": {"granularity": "per_group", "group_size": 4}}]},
    )
    assert expand(from_mapping(resolved(config))) == (config,)


def test_options_of_a_method_are_sorted_pairs_and_survive_a_round_trip() -> None:
    config = run(flow="ptq", allocation={"bits": [4, 4]}, quantize={"weight": {"options": {"b": 1, "a": 0.5}}})
    assert config.quantize.weight.options == (("a", 0.5), ("b", 1))
    assert expand(from_mapping(resolved(config))) == (config,)
    for bad in (3, {"b": [1]}, {"b": None}):
        assert problems(quantize={"weight": {"options": bad}})[0].startswith(
            "quantize.weight.options: expected a mapping"
        )


def test_settings_that_a_flow_ignores_do_not_make_another_run() -> None:
    sweep = {"grid": {"flow": ["float", "ptq"], "allocation.bits": [[2, 2], [4, 4]], "qat.epochs": [1, 2]}}
    found = expand(from_mapping({"name": "a", "flow": "ptq", "sweep": sweep}))
    assert [(config.flow, config.allocation.bits) for config in found] == [
        ("float", None),
        ("ptq", (2, 2)),
        ("ptq", (4, 4)),
    ]
