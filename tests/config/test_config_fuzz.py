"""Mutated configs give runs or a ConfigError, never another exception, and every line of the error has its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qresearch.config import RunConfig, config_hash, expand, load, trial_label
from qresearch.errors import ConfigError

SEED = {
    "name": "fuzz",
    "flow": "qat",
    "float": {"epochs": 2, "learning_rate": 0.001, "optimizer": "adamw", "clip_norm": 1.0},
    "quantize": {
        "weight": {"quantizer": "lsq", "granularity": "per_group", "group_size": 4, "mask": "none"},
        "input": {"signed": False},
        "menu": [[2, 2], [4, 8]],
        "rules": [{"pattern": "a", "weight": "float", "input": {"range": "max"}, "menu": [[8, 8]]}],
    },
    "allocation": {"budget": 3.5},
    "sweep": {
        "grid": {"seed": [0, 1], "qat.epochs": [1]},
        "zip": {"data.name": ["a", "b"], "task": ["c", "d"]},
        "list": [{"allocation": {"bits": [4, 4]}}, {"allocation.cost": "bops"}],
    },
}
TEXT = """\
# Question: none.
name: fuzz
flow: qat
float: {epochs: 2, learning_rate: 1e-3, optimizer: adamw}
quantize:
  weight:
    quantizer: "lsq"
    granularity: per_group
    group_size: 4
  menu: [[2, 2], [4, 8]]
  rules:
  - pattern: 'a*'
    weight: float
    input: {range: max}
allocation:
  budget: 3.5
sweep:
  grid:
    seed: [0, 1]
    qat.epochs:
    - 1
  list:
  - allocation: {bits: [4, 4]}
  - {allocation.cost: bops}
"""
LINE = re.compile(r"(fuzz\.yaml:\d+  .+|--set  .+|fuzz\.yaml  and \d+ more problems)")
HOSTILE = [
    "&a ",
    "*a",
    "!!python/object/apply:os.system [x]",
    "<<: ",
    "{",
    "[",
    "]",
    "- ",
    "? ",
    "\t",
    "\n---\n",
    "|\n",
]
HOSTILE += [
    '"\\UFFFFFFFF"',
    '"\\0"',
    "%YAML 9.9\n",
    "\x85",
    "\u2028",
    "\ufeff",
    "\0",
    "9" * 5000,
    "1e999",
    "..",
    "../",
    "𝔘",
]
# Single keys of the schema and of nothing, in places where they do and do not belong.
KEYS = st.sampled_from(
    ["name", "seed", "weight", "bits", "rules", "menu", "grid", "sweep", "float", "a.b", "", "0", "é"]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["ptq", "float"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def _paths(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [path, *(found for key, value in pairs for found in _paths(value, (*path, key)))]


def _changed(values: Any, path: tuple[Any, ...], action: str, key: str, new: Any) -> Any:
    values = json.loads(json.dumps(values))
    *section, last = path
    target = values
    for part in section:
        target = target[part]
    if action == "add" and isinstance(target[last], dict):
        target[last][key] = new
    elif action == "remove":
        del target[last]
    elif action == "rename" and isinstance(target, dict):
        target[str(last)[:-1] or key] = target.pop(last)
    else:
        target[last] = new
    return values


@st.composite
def structured(draw: st.DrawFn) -> bytes:
    values: Any = SEED
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in _paths(values) if path] or [("name",)]))
        action = draw(st.sampled_from(["add", "remove", "rename", "replace"]))
        values = _changed(values, path, action, draw(KEYS), draw(VALUES)) if path[0] in values else values
    return json.dumps(values, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    content = TEXT.encode()
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 6)))
        piece = draw(st.binary(max_size=3) | st.sampled_from([text.encode() for text in HOSTILE]))
        content = content[:start] + draw(st.sampled_from([piece, piece, content[start:stop] * 2])) + content[stop:]
    return content


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _check(content: bytes, overrides: list[str]) -> bool:
    """Whether the file is accepted. Whatever is accepted has a label and a hash."""
    Path("fuzz.yaml").write_bytes(content)
    try:
        runs = expand(load("fuzz.yaml", overrides))
    except ConfigError as error:
        message = str(error)
    else:
        return _are_runs(runs)
    assert all(LINE.fullmatch(line) and line.isprintable() for line in message.split("\n")), message
    return False


def _are_runs(runs: tuple[RunConfig, ...]) -> bool:
    assert len({config_hash(run) for run in runs}) == len(runs) >= 1
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", trial_label(run)) for run in runs)
    return True


def _fuzz(examples: int) -> None:
    accepted = {True: 0, False: 0}

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        structured() | mutated(),
        st.lists(KEYS.flatmap(lambda key: st.text(max_size=6).map(f"{key}={{}}".format)), max_size=1),
    )
    def check(content: bytes, overrides: list[str]) -> None:
        accepted[_check(content, overrides)] += 1

    check()
    # A fuzzer that only ever meets one of the two outcomes tests nothing.
    assert min(accepted.values()) > examples / 100


def test_the_seeds_are_valid(folder: Path) -> None:
    assert _check(TEXT.encode(), [])
    assert _check(json.dumps(SEED).encode(), [])


def test_mutated_configs(folder: Path) -> None:
    _fuzz(300)


@pytest.mark.slow
def test_ten_thousand_mutated_configs(folder: Path) -> None:
    _fuzz(10_000)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_at_every_place(folder: Path, text: str) -> None:
    for place in [0, *(match.end() for match in re.finditer(r": |- |\n|\[", TEXT))]:
        _check((TEXT[:place] + text + TEXT[place:]).encode(), [])
