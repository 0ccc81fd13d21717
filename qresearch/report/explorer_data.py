"""What the interactive page knows: the records of some runs as plain values for JSON, each number as it was stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qresearch.cost import COSTS
from qresearch.errors import DataError
from qresearch.report.front import Point, leaves, points_of_run
from qresearch.report.posterior import LEVELS, belief_of
from qresearch.results.atomic import read_bytes
from qresearch.results.record import Record
from qresearch.results.run_folder import RunFolder
from qresearch.results.tables import sensitivity_tables, tells_of

_CURVES = ("train_loss", "validation_loss", "validation_score")


def explorer_data(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """The runs, their points and the trials of those, their sensitivity tables and the costs that any of them has.

    Fronts, means and errors are left to the page, which makes them of the trials that are shown. ``DataError`` if no
    trial of these runs has finished.
    """
    content: dict[str, Any] = {"runs": [], "points": [], "tables": []}
    for run in runs:
        _add(content, run)
    if not content["points"]:
        names = ", ".join(str(run.path) for run in runs)
        raise DataError(f"{names}: no finished trial to report; resume the sweep first")
    trials = [trial for point in content["points"] for trial in point["trials"]]
    shared = [name for name in trials[0]["costs"] if all(name in trial["costs"] for trial in trials)]
    content["costs"] = [{"name": name, "label": _cost_label(name, content["runs"])} for name in shared]
    return content


def embedded(content: Any) -> str:
    """JSON that may stand inside a <script> element: nothing in it can end the element or begin a comment."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _add(content: dict[str, Any], run: RunFolder) -> None:
    stored = run.records()
    try:
        own_tables = sensitivity_tables(run)
    except DataError as error:
        raise DataError(f"{error}; delete it, and the report leaves it out") from None
    points = points_of_run(run, stored.records)
    first, tables = len(content["tables"]), [_table(table) for table in own_tables]
    done = [record for point in points for record in point.records]
    varied = _varied(done)
    for point in points:
        trials = [_trial(record, own_tables, first, varied) for record in point.records]
        content["points"].append({"run": len(content["runs"]), **_point(point), "trials": trials})
    content["tables"] += tables
    failed = [record for record in stored.records if record.status == "failed"]
    content["runs"].append(
        {
            "name": run.path.name,
            "created": run.created,
            "done": len(done),
            "failed": [[record.label, record.seed, record.reason] for record in failed],
            "invalid": [[str(path.relative_to(run.path)), reason] for path, reason in stored.invalid],
            "config": config_text(run),
            "environments": environment_texts(done),
            "costs": [cost for record in done[:1] for cost in record.config.get("costs", [])],
        }
    )


def _point(point: Point) -> dict[str, Any]:
    return {
        "label": point.label,
        "series": point.series if point.flow != "float" else "float",
        "model": f"{point.problem.model} · {point.problem.data}",
        "score_name": point.problem.score_name,
        "higher_is_better": point.problem.higher_is_better,
        "flow": point.flow,
        "treatment": point.treatment,
    }


def _trial(record: Record, tables: Sequence[dict[str, Any]], first: int, varied: Sequence[str]) -> dict[str, Any]:
    config = dict(leaves(record.config))
    known = [i for i, table in enumerate(tables) if tells_of(table, record.config)]
    # Of several tables, the one that this trial's allocator had before it comes first.
    measured = record.config.get("sensitivity")
    known.sort(key=lambda i: tables[i]["identity"]["measured"] != measured)
    belief = belief_of(record.label, record)
    return {
        "key": record.key[:8],
        "seed": record.seed,
        "seconds": record.seconds,
        "costs": record.costs,
        "test": {name: record.metrics["test"][name] for name in ("score", "loss")},
        "validation": {name: record.metrics["validation"][name] for name in ("score", "loss")},
        "layers": record.allocation["layers"],
        "bits": record.allocation["bits"],
        "tables": [first + i for i in known],
        "probabilities": dict(belief.probabilities) if belief else {},
        "front": [belief.posterior["front"][level] for level in LEVELS]
        if belief and "front" in belief.posterior
        else None,
        "epochs": _epochs(record),
        "settings": {name: config.get(name) for name in varied},
    }


def _epochs(record: Record) -> dict[str, list[float | None]]:
    """The curves of a training by name, and its epochs."""
    rows = sorted((int(epoch), row) for epoch, row in record.metrics.get("epochs", {}).items())
    if not rows:
        return {}
    curves = {name: [row.get(name) for _, row in rows] for name in _CURVES}
    return {"epoch": [epoch for epoch, _ in rows], **curves}


def _varied(records: Sequence[Record]) -> list[str]:
    """The config entries in which trials differ."""
    configs = [dict(leaves(record.config)) for record in records]
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if any(config.get(name) != configs[0].get(name) for config in configs)]


def _table(table: dict[str, Any]) -> dict[str, Any]:
    kept = ("layers", "options", "loss", "standard_error", "float_loss")
    # The first part of a name is the digest of the float model.
    return {"name": table["name"].partition("-")[2], **{name: table[name] for name in kept}}


def _cost_label(name: str, runs: Sequence[dict[str, Any]]) -> str:
    if name == "average_bits":
        return "average bits"
    if name in COSTS:
        return f"{name.replace('_', ' ')} ({COSTS[name].unit})"
    for cost in (cost for run in runs for cost in run["costs"] if cost["name"] == name):
        unit = "ms" if cost.get("device") else cost.get("unit", "")
        where = f"latency on {cost['device']}, " if cost.get("device") else ""
        return f"{name} ({where}{unit})" if where or unit else name
    return name


def config_text(run: RunFolder) -> str:
    """The config as it was written, or resolved where that file is gone."""
    source = run.path / "sweep.yaml"
    if source.is_file():
        return read_bytes(source).decode("utf-8", errors="replace")
    return json.dumps(run.sweep, indent=1, sort_keys=True)


def environment_texts(records: Sequence[Record]) -> list[str]:
    """Every environment in which these trials ran, without the sources, which are each trial's own."""
    found = ({k: v for k, v in record.environment.items() if k != "sources"} for record in records)
    return sorted({json.dumps(environment, indent=1, sort_keys=True) for environment in found})
