"""A sweep small enough for tests, what it leaves on disk, and a count of XLA compilations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qresearch.cli import main

# All three flows on an MLP; ranges by min-max, because the search for an MSE range takes longer to compile.
SMALL = """\
name: small
data: {name: digits}
model: {name: mlp}
float: {epochs: 5, batch_size: 128, learning_rate: 3e-3}
quantize:
  weight: {quantizer: lsq, granularity: per_tensor, range: minmax}
  input: {quantizer: lsq, granularity: per_tensor, range: minmax}
  menu: [[2, 2], [4, 4], [8, 8]]
calibration: {examples: 64}
sensitivity: {examples: 100}
evaluate: {batch_size: 100}
qat: {epochs: 8, batch_size: 128, learning_rate: 1e-3}
flow: ptq
engine: {name: inline}
allocation: {bits: [8, 8]}
sweep:
  list:
    - {flow: float}
    - {flow: ptq, allocation: {bits: [4, 4]}}
    - {flow: ptq, allocation: {allocator: exact, budget: 4}}
    - {flow: ptq, allocation: {allocator: random, budget: 3}}
    - {flow: qat, allocation: {bits: [4, 4]}}
    - {flow: qat, allocation: {bits: [2, 2]}, qat.learning_rate: 3e-3}
    - {flow: qat, allocation: {allocator: exact, budget: 3}}
"""
# One trial, of a model that nobody trained: the cheapest run there is.
ONE = ("sweep=null", "float.epochs=0")


def write_small(folder: Path, text: str = SMALL) -> Path:
    """The config as a file in ``folder``."""
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def settings(*values: str) -> list[str]:
    """``--set`` arguments."""
    return [argument for value in values for argument in ("--set", value)]


def sweep(config: Path, output: Path, *values: str) -> int:
    """The exit status of ``qresearch sweep``, in this process."""
    return main(["sweep", str(config), *settings(f"output={output}", "engine.name=inline", *values)])


def stored(output: Path) -> dict[str, dict[str, Any]]:
    """Every stored record under an output folder, by its label."""
    records = [json.loads(path.read_text()) for path in output.glob("*/trials/*/result.json")]
    assert len({record["label"] for record in records}) == len(records)
    return {record["label"]: record for record in records}


def outcome_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a trial found: all of a record but when and where it ran, and where it was stored."""
    left_out = ("seconds", "created", "environment", "config", "sha256")
    found = {name: value for name, value in record.items() if name not in left_out}
    taken = record["metrics"].get("search", {})
    search = {name: value for name, value in taken.items() if not name.endswith("seconds")}
    return found | {"metrics": record["metrics"] | {"search": search}}


def one_line(text: str) -> str:
    """The text, which must be one line."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the functions that XLA compiles while the block runs."""
    from jax import monitoring

    compiled: list[str] = []

    def listen(event: str, duration: float, **facts: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(facts.get("fun_name", "?")))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        monitoring.unregister_event_duration_listener(listen)


def state_of(folder, *patterns):
    """(content, time of the last change) of files."""
    files = [file for pattern in patterns for file in folder.glob(pattern) if file.is_file()]
    assert files
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
