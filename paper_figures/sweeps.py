"""Records of figures that a sweep makes: an existing config, run the ordinary way, and what its records say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paper_figures.figure import ROOT, Record, origin
from qresearch.errors import DataError


def run_config(config: str, settings: Sequence[str] = ()) -> list[Record]:
    """Runs what has no record yet of ``configs/CONFIG`` with the given settings, in its own output folder; a record per
    trial, with the trial's own commit, device, versions and seconds. ``DataError`` if a trial failed.
    """
    from rich.console import Console

    from qresearch.config import load
    from qresearch.report.front import points_of
    from qresearch.sweep.progress import Terminal
    from qresearch.sweep.run import run_sweep

    path = ROOT / "configs" / config
    sweep = load(str(path), list(settings))
    result = run_sweep(sweep, path.read_text(encoding="utf-8"), Terminal(Console()), lambda run: print(run.path))
    if result.failed:
        raise DataError(f"{config}: " + "; ".join(f"{label}: {reason}" for label, reason in result.failed))
    records = result.run.records().records
    return [_plain(config, record, points_of([record])[0]) for record in records]


def _plain(config: str, record: Any, point: Any) -> Record:
    """What figures need of a record, beside where it comes from."""
    return {
        **origin(record.environment, record.seconds),
        "config": config,
        "key": record.key[:16],
        "label": record.label,
        "seed": record.seed,
        "task": record.task,
        "model": record.model,
        "data": record.data,
        "flow": record.flow,
        "methods": point.methods,
        "allocator": point.allocator,
        "allocation": point.allocation,
        "budget": record.allocation["budget"],
        "costs": dict(record.costs),
        "score_name": record.score_name,
        "higher_is_better": record.higher_is_better,
        "test": dict(record.metrics["test"]),
        "validation": dict(record.metrics["validation"]),
        "search": dict(record.metrics.get("search", {})),
    }
