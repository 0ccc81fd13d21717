"""Searches side by side: every allocator and sensitivity on the same budgets, in one table."""

from __future__ import annotations

import collections
import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from qresearch.errors import DataError
from qresearch.pareto import hypervolume
from qresearch.report.front import Point
from qresearch.results.atomic import read_bytes, render_json, write_text
from qresearch.results.run_folder import RunFolder

HEADER = ("search", "budgets", "mean score", "hypervolume", "search s", "table s", "measured", "epochs")
ABOUT = (
    "Allocations that were searched for, by flow, quantizer and search. Mean test score over the budgets, which is"
    " comparable where searches have the same ones; hypervolume of the test scores against {reference}; per budget:"
    " seconds of the search itself, of the sensitivity table (which searches may share), allocations whose loss it"
    " measured, epochs that it trained."
)


def search_rows(points: Sequence[Point], settings: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells under ``HEADER``, best mean score first; none where fewer than two searches are to be compared.

    settings: the ``report`` section of the config: ``cost``, ``reference``.
    """
    groups = collections.defaultdict(list)
    for point in points:
        if point.budget is not None:
            groups[point.problem, point.series].append(point)
    if len({point.allocator for members in groups.values() for point in members}) < 2:
        return []
    rows = []
    for (problem, series), members in groups.items():
        sign = 1 if problem.higher_is_better else -1
        scores = [sign * point.test.mean for point in members]
        mean = math.fsum(scores) / len(scores)
        taken = [record.metrics["search"] for p in members for record in p.records if "search" in record.metrics]
        columns = ("seconds", "table_seconds", "measured", "epochs")
        cells = [f"{_mean(taken, column):.3g}" if taken else "-" for column in columns]
        volume = _volume(members, scores, sign, settings)
        rows.append((problem, -mean, (series, str(len(members)), f"{sign * mean:.4f}", volume, *cells)))
    return [cells for _, _, cells in sorted(rows, key=lambda row: row[:2])]


def search_points(points: Sequence[Point]) -> list[Point]:
    """The points of all searches, and what they are held against: the float model and one option for all layers."""
    searched = {point.problem for point in points if point.budget is not None}
    return [point for point in points if point.problem in searched]


def searches_csv(rows: Sequence[tuple[str, ...]]) -> str:
    """``search_rows`` as a table for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([tuple(name.replace(" ", "_") for name in HEADER), *rows])
    return text.getvalue()


def report_settings(run: RunFolder) -> dict[str, Any]:
    """The ``report`` section of the config that last ran; empty where the folder has none."""
    path = run.path / "report.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(read_bytes(path))
        return {"cost": str(settings["cost"]), "reference": settings["reference"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}); run the sweep again, which writes it anew") from None


def keep_settings(run: RunFolder, settings: dict[str, Any]) -> None:
    """Stores the ``report`` section of a config, unless it is there already."""
    text = render_json(settings)
    path = run.path / "report.json"
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def about_searches(settings: dict[str, Any]) -> str:
    """``ABOUT``, with the reference point of the config."""
    reference = settings.get("reference")
    cost = settings.get("cost", "average_bits")
    point = f"{cost} {reference[0]:g}, score {reference[1]:g}" if reference else "report.reference, which is not given"
    return ABOUT.format(reference=point)


def _mean(taken: list[dict[str, float]], name: str) -> float:
    return math.fsum(entry.get(name, 0.0) for entry in taken) / len(taken)


def _volume(points: list[Point], scores: list[float], sign: int, settings: dict[str, Any]) -> str:
    reference = settings.get("reference")
    if not reference:
        return "-"
    costs = [point.costs[settings["cost"]] for point in points]
    return f"{hypervolume(costs, scores, (reference[0], sign * reference[1])):.5g}"
