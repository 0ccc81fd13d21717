"""What a tracker is, and what all of them are told of a trial, under the same names."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from qresearch.results import Record, content_hash

Rows = Sequence[Mapping[str, Any]]
"""The rows of a trial's ``metrics.jsonl``: ``epoch`` and what was measured after it; None for what was not finite."""


class Tracker(Protocol):
    """Made by a function of a folder of its own, which need not exist, and the name of the run."""

    def log(self, record: Record, rows: Rows) -> None:
        """Writes a trial, in place of what the mirror held of it; does nothing where it holds this very record."""

    def close(self) -> None:
        """Nothing more will be logged."""


class MakeTracker(Protocol):
    """``folder``: of this tracker and this run alone. ImportError where its package is not installed."""

    def __call__(self, folder: Path, run: str, /) -> Tracker: ...


class Scalar(NamedTuple):
    """A number; step: the epoch after which it was measured, 0 for what is known of the trial as a whole."""

    name: str
    step: int
    value: float


def scalars(record: Record, rows: Rows) -> list[Scalar]:
    """``epoch/...`` for every number of every row, then ``test``, ``validation``, ``costs/...`` and ``seconds``."""
    found = [
        Scalar(f"epoch/{name}", int(row["epoch"]), float(value))
        for row in rows
        for name, value in sorted(row.items())
        if name != "epoch" and _is_number(value)
    ]
    whole = {split: record.metrics[split] for split in ("test", "validation") if split in record.metrics}
    whole |= {"costs": record.costs, "seconds": record.seconds}
    return found + [
        Scalar(name.replace(".", "/"), 0, float(value)) for name, value in _leaves(whole) if _is_number(value)
    ]


def settings(record: Record) -> dict[str, bool | int | float | str]:
    """The resolved config by dotted key; lists and nulls as JSON. Also ``status``, and the ``reason`` of a failure."""
    plain = {
        name: value if isinstance(value, str) or _is_number(value) else json.dumps(value)
        for name, value in _leaves(record.config)
    }
    return plain | {"status": record.status} | ({"reason": record.reason} if record.reason else {})


def fingerprint(record: Record) -> str:
    """64 hexadecimal digits that tell this record from any other, also from one of the same trial run again."""
    return content_hash(dataclasses.asdict(record))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
