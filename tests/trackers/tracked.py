"""A run with three trials, of which one failed, and what trackers should show of it."""

from __future__ import annotations

from pathlib import Path

from results_fixtures import make_examples, make_record

from qresearch.results import Record, RunFolder, create_run

ROWS = [
    {"epoch": 1, "train_loss": 0.75, "validation_loss": 0.5, "validation_score": 0.5},
    {"epoch": 2, "train_loss": None, "validation_loss": 0.25, "validation_score": 0.75},
]
FAILED = {
    "status": "failed",
    "reason": "the loss became nan",
    "metrics": {},
    "costs": dict.fromkeys(("average_bits", "size", "bops", "relative_bops")),
}


def make_run(output: Path) -> tuple[RunFolder, list[Record]]:
    """The run, and its records as they are stored: two finished trials and a failed one."""
    run = create_run(output, "small", "name: small\n", {"name": "small"}, {"commit": None})
    for record in (make_record(seed=0), make_record(seed=1, bits=2), make_record(seed=2, **FAILED)):
        store(run, record)
    return run, [run.record(record.key) for record in run.records().records]


def store(run: RunFolder, record: Record) -> None:
    """A record with its metrics, as a sweep stores it."""
    run.start(record.key, record.label, record.config)
    run.save_metrics(record.key, ROWS if record.status == "done" else ROWS[:1])
    run.save(record, make_examples() if record.status == "done" else None)


def numbers(record: Record) -> dict[tuple[str, int], float]:
    """{(name, step): value} that a dashboard should show of a record, written out by hand."""
    rows = ROWS if record.status == "done" else ROWS[:1]
    found = {(f"epoch/{name}", row["epoch"]): value for row in rows for name, value in row.items() if name != "epoch"}
    for split in ("test", "validation"):
        found |= {(f"{split}/{name}", 0): record.metrics[split][name] for name in record.metrics.get(split, {})}
    found |= {(f"costs/{name}", 0): value for name, value in record.costs.items()}
    found["seconds", 0] = record.seconds
    return {place: value for place, value in found.items() if value is not None}
