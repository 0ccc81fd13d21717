from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qresearch.config import (
    FREE,
    RunConfig,
    config_hash,
    distinct_labels,
    expand,
    from_mapping,
    load,
    resolved,
    trial_label,
)

BASE: dict[str, Any] = {"name": "a", "flow": "qat", "allocation": {"bits": [4, 4]}}


def run(**values: Any) -> RunConfig:
    return expand(from_mapping(BASE | values))[0]


def _leaves(values: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(values, dict):
        return [leaf for key, value in values.items() for leaf in _leaves(value, (*path, key))]
    return [(path, values)]


def _shuffled(values: Any, order: Any) -> Any:
    if not isinstance(values, dict):
        return values
    keys = list(values)
    order.shuffle(keys)
    return {key: _shuffled(values[key], order) for key in keys}


CHANGED: dict[str, Any] = {
    "bits": [8, 8],
    "menu": [[1, 1]],
    "rules": [{"pattern": "a"}],
    "optimizer": "sgd",
    "schedule": "constant",
    "mask": "none",
    "option": [4, 4],
    "first": True,
    "last": True,
    "signed": True,
    "symmetric": False,
    "narrow": True,
    "rounding": "floor",
    "options": {"delta": 0.5},
    "flow": "ptq",
    "momentum": 0.5,
    "clip_norm": 1.0,
    "examples": 7,
    "augment": "flip",
    "reference": [1.0, 2.0],
    "tied": ["a"],
    "costs": [{"name": "a", "device": "t4"}],
    "workers": 2,
    "timeout": 60.0,
    "trackers": ["tensorboard"],
}
NEEDS_ANOTHER_KEY = {"granularity", "group_size", "budget", "ptq", "limits"}


@pytest.mark.parametrize("path", [path for path, _ in _leaves(resolved(run()))], ids=".".join)
def test_every_setting_that_can_change_a_result_is_in_the_hash(path: tuple[str, ...]) -> None:
    if path[-1] in NEEDS_ANOTHER_KEY:
        return
    values = json.loads(json.dumps(resolved(run())))
    section = values
    for part in path[:-1]:
        section = section[part]
    old = section[path[-1]]
    section[path[-1]] = CHANGED.get(path[-1], old + 1 if isinstance(old, int | float) else _other(path, old))
    (changed,) = expand(from_mapping(values))
    assert changed != run()
    assert (config_hash(changed) == config_hash(run())) == (path[0] in FREE)


def _other(path: tuple[str, ...], old: Any) -> Any:
    return 7 if path == ("evaluate", "examples") else f"{old or 'x'}2"


def test_post_training_methods_are_in_the_hash_of_ptq_runs_alone() -> None:
    lists = [[], ["gptq"], [{"name": "gptq", "options": {"damping": 0.1}}], ["gptq", "awq"], ["awq", "gptq"]]
    assert len({config_hash(run(flow="ptq", ptq=methods)) for methods in lists}) == len(lists)
    assert len({config_hash(run(flow="qat", ptq=methods)) for methods in lists}) == 1
    assert run(flow="ptq", ptq=["gptq"]) == run(flow="ptq", ptq=[{"name": "gptq"}])


def test_granularity_and_budget_are_in_the_hash() -> None:
    group = {"granularity": "per_group", "group_size": 4}
    configs = [
        run(),
        run(quantize={"weight": {"granularity": "per_tensor"}}),
        run(quantize={"weight": group}),
        run(quantize={"weight": group | {"group_size": 8}}),
        run(allocation={"budget": 3}),
        run(allocation={"budget": 3.5}),
    ]
    assert len({config_hash(config) for config in configs}) == len(configs)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_is_not_in_the_hash(order: Any) -> None:
    values = _shuffled(resolved(run()), order)
    assert config_hash(expand(from_mapping(values))[0]) == config_hash(run())


def test_notes_spelling_and_written_defaults_are_not_in_the_hash(tmp_path: Path) -> None:
    texts = [
        "name: a\nflow: qat\nallocation: {bits: [4, 4]}\n",
        "# note\nallocation:\n  bits:\n  - 4 # four\n  - 4\nflow: 'qat'\nname: other\noutput: elsewhere\n",
        "name: a\nflow: qat\nseed: 0\nfloat: {learning_rate: 3e-3}\nqat: {weight_decay: -0.0}\n"
        "allocation: {bits: [4, 0x4]}",
    ]
    paths = [tmp_path / f"{i}.yaml" for i in range(len(texts))]
    for path, text in zip(paths, texts):
        path.write_text(text)
    assert {config_hash(config) for path in paths for config in expand(load(path))} == {config_hash(run())}
    assert re.fullmatch("[0-9a-f]{64}", config_hash(run()))


def test_the_hash_is_that_of_canonical_json() -> None:
    values = {key: value for key, value in resolved(run()).items() if key not in FREE}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert text.startswith('{"allocation":{"allocator":"uniform","bits":[4,4],"budget":null,')
    assert config_hash(run()) == hashlib.sha256(text.encode()).hexdigest()


def test_whole_numbers_and_floats_are_one_setting() -> None:
    assert config_hash(run(allocation={"budget": 4})) == config_hash(run(allocation={"budget": 4.0}))


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"flow": "float", "seed": 3}, "float-seed3"),
        ({}, "qat-minmax-w4a4-seed0"),
        ({"quantize": {"weight": {"quantizer": "lsq"}}}, "qat-lsq+minmax-w4a4-seed0"),
        (
            {
                "flow": "qat",
                "quantize": {"weight": {"quantizer": "lsq"}, "input": {"quantizer": "lsq"}},
                "allocation": {"allocator": "exact", "budget": 3.5},
            },
            "qat-lsq-exact-3.5bits-seed0",
        ),
        ({"allocation": {"budget": 2.5e9, "cost": "bops"}}, "qat-minmax-uniform-2.5e+09bops-seed0"),
    ],
)
def test_labels(values: dict[str, Any], label: str) -> None:
    assert trial_label(run(**values)) == label


def test_the_longest_label_fits_a_file_name_and_stays_in_its_folder() -> None:
    names = ["x" * 38 + end for end in "ABCD"]
    quantize = {"weight": {"quantizer": names[0]}, "input": {"quantizer": names[1]}}
    allocation = {"allocator": names[2], "cost": names[3], "budget": 1.23456789e-300}
    label = trial_label(run(seed=2**32 - 1, quantize=quantize, allocation=allocation))
    assert len(label) <= 100
    assert re.fullmatch(r"[A-Za-z0-9._+-]+", label)


def test_equal_labels_are_told_apart_by_what_differs():
    base = {"name": "a", "flow": "qat", "allocation": {"bits": [4, 4]}}
    grid = {"qat.learning_rate": [0.1, 0.2], "seed": [0, 1]}
    several = expand(from_mapping({**base, "sweep": {"grid": grid}}))
    labels = distinct_labels(several)
    assert labels.keys() == {config_hash(config) for config in several}
    assert len(set(labels.values())) == 4
    first = several[0]
    assert labels[config_hash(first)] == f"{trial_label(first)} qat.learning_rate={first.qat.learning_rate}"
    seeds = expand(from_mapping({**base, "sweep": {"grid": {"seed": [0, 1]}}}))
    assert distinct_labels(seeds) == {config_hash(config): trial_label(config) for config in seeds}
