"""Configs that are nearly right: changed ones, real ones with bytes changed, and ones made from the schema."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel

from qresearch.config import RunConfig
from qresearch.config.sweep_grid import SweepSection

SEED = {
    "name": "fuzz",
    "flow": "qat",
    "float": {"epochs": 2, "learning_rate": 0.001, "optimizer": "adamw", "clip_norm": 1.0},
    "quantize": {
        "weight": {"quantizer": "lsq", "granularity": "per_group", "group_size": 4, "mask": "none"},
        "input": {"signed": False},
        "menu": [[2, 2], [4, 8]],
        "rules": [{"pattern": "a", "weight": "float", "input": {"range": "absmax"}, "menu": [[8, 8]]}],
    },
    "allocation": {"budget": 3.5},
    "sweep": {
        "grid": {"seed": [0, 1], "qat.epochs": [1]},
        "zip": {"data.name": ["digits", "mnist"], "task": ["classification", "detection"]},
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
    input: {range: absmax}
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
  suggest:
    name: random
    trials: 4
    space: {qat.batch_size: {int: [8, 16]}, qat.learning_rate: {log: [1e-4, 1e-2]}, qat.schedule: [cosine, constant]}
"""
REAL = [path.read_text() for path in sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))]
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
    content = draw(st.sampled_from([TEXT, TEXT, TEXT, *REAL])).encode()
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 6)))
        piece = draw(st.binary(max_size=3) | st.sampled_from([text.encode() for text in HOSTILE]))
        content = content[:start] + draw(st.sampled_from([piece, piece, content[start:stop] * 2])) + content[stop:]
    return content


# Names that some key takes, and values that texts take elsewhere.
NAMES = ["digits", "mlp", "classification", "lsq", "minmax", "auto", "exact", "random", "bops", "bias_correction"]
NAMES += ["tensorboard", "sqnr", "seed", "qat.epochs", "allocation.bits", "allocation.budget", "fuzz", "a/b", ""]


@st.composite
def schematic(draw: st.DrawFn) -> bytes:
    """Every key of the schema may be there, with a value of its type, which need not be within its limits."""
    values = draw(_section(RunConfig))
    values |= draw(st.sampled_from([{}, {"name": "fuzz", "flow": "float"}, {"name": "fuzz", "flow": "float"}]))
    if draw(st.booleans()):
        values["sweep"] = draw(_section(SweepSection))
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _section(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    keys = {field.alias or name: _value(field.annotation) for name, field in model.model_fields.items()}
    chosen = st.sets(st.sampled_from(sorted(keys)), max_size=3)
    return chosen.flatmap(lambda own: st.fixed_dictionaries({key: keys[key] for key in sorted(own)}))


def _value(kind: Any) -> st.SearchStrategy[Any]:
    inner = get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return st.deferred(lambda: _section(kind))
    if get_origin(kind) is Annotated:
        return _value(inner[0])
    if get_origin(kind) is Literal:
        return st.sampled_from(inner)
    if get_origin(kind) in (types.UnionType, Union):
        return st.one_of(*map(_value, inner))
    if get_origin(kind) in (tuple, list):
        return st.lists(_value(inner[0]), max_size=3)
    if get_origin(kind) is dict:
        return st.dictionaries(st.sampled_from(NAMES), _value(inner[1]), max_size=2)
    simple = {
        int: st.integers(-1, 9),
        float: st.floats(-1, 9) | st.integers(0, 9),
        str: st.sampled_from(NAMES),
        bool: st.booleans(),
    }
    return simple.get(kind, VALUES)
