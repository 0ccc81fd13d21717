"""A sweep of 120 trials to kill, and what must hold afterwards; for ``test_kills`` and ``test_dask_kills``."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from small_sweep import outcome_of

from qresearch.results.ledger import read_ledger

CONFIG = """\
name: kills
data: {name: digits}
model: {name: mlp}
float: {epochs: 2, batch_size: 128, learning_rate: 3e-3}
quantize:
  weight: {quantizer: lsq, granularity: per_tensor, range: minmax}
  input: {quantizer: lsq, granularity: per_tensor, range: minmax}
  menu: [[2, 2], [4, 4], [8, 8]]
calibration: {examples: 64}
sensitivity: {examples: 100, joint: 4}
evaluate: {batch_size: 100}
qat: {epochs: 3, batch_size: 64, learning_rate: 1e-3}
flow: ptq
engine: {attempts: 100}
allocation: {bits: [8, 8]}
sweep:
  grid: {seed: [0, 1, 2, 3, 4]}
  list:
    - {flow: float}
    - {flow: ptq, allocation.bits: [2, 2]}
    - {flow: ptq, allocation.bits: [4, 4]}
    - {flow: ptq, allocation: {allocator: exact, budget: 3}}
    - {flow: ptq, allocation: {allocator: exact, budget: 5}}
    - {flow: ptq, allocation: {allocator: greedy, budget: 4}}
"""
RATES = (3e-4, 1e-3, 3e-3)
QAT = [
    f"    - {{flow: qat, allocation.bits: [{weight}, {input_}], qat.learning_rate: {rate}}}\n"
    for weight, input_ in ((2, 2), (4, 2), (2, 4), (4, 4), (8, 4), (8, 8))
    for rate in RATES
]
TRIALS = 120


def begin(folder: Path, output: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "kills.yaml").write_text(CONFIG + "".join(QAT))
    command = [sys.executable, "-m", "qresearch.cli", "sweep", str(folder / "kills.yaml"), "--set", f"output={output}"]
    # What was compiled once is not compiled again, so that the kills fall on everything else too.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **cache, "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"},
    )


def files(output: Path) -> list[Path]:
    return sorted(output.glob("*/trials/*/result.json"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def records_of(output: Path) -> int:
    return len(files(output))


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(stat[1]) == pid and stat[0] != "Z":
                found.append(int(entry.name))
    return found


def workers_on(output: Path) -> list[int]:
    """Processes that have a log of a worker of this output open."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(output) in os.readlink(entry / "fd" / "2"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def assert_nobody_left(output: Path) -> None:
    until = time.monotonic() + 5
    while left := workers_on(output):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def take_some(output: Path, random: np.random.Generator) -> None:
    """A sweep would be done long before so many kills: a third of its records is taken away."""
    for path in random.permutation(files(output))[: TRIALS // 3]:
        Path(path).unlink()


def assert_whole(output: Path, unbroken: Path) -> None:
    """Every trial has one record, equal to that of the unbroken sweep, and the ledger says so."""
    found, expected = (
        {record["key"]: record for record in map(read, files(path))} for path in (output, unbroken / "out")
    )
    assert len(found) == len(expected) == len(files(output)) == TRIALS
    for key, record in expected.items():
        assert outcome_of(found[key]) == outcome_of(record), record["label"]
    folders = [path.name[:8] for path in output.glob("*/trials/*")]
    assert max(collections.Counter(folders).values()) == 1
    (run,) = output.iterdir()
    rows = read_ledger(run)
    assert len(rows) == TRIALS
    assert {row.state for row in rows} == {"done"}
    assert not list(output.rglob("*.tmp"))
