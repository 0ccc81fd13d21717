"""The accuracy-degradation table: what INT8, INT4 and mixed allocations cost in score and save in size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from qresearch.report.front import Estimate, Point
from qresearch.report.table import csv_text, score_text

HEADER = (
    "task",
    "model",
    "data",
    "variant",
    "score",
    "drop",
    "size kB",
    "compression",
    "average_bits",
    "bops M",
    "latency ms",
    "verdict",
)
UNIFORM = {"W8A8": "INT8", "W4A4": "INT4"}


class Degradation(NamedTuple):
    """One variant of one model. drop: of the test score from float, in hundredths of the score (percentage points of an
    accuracy or mAP, 0.01 of bits per character), positive where it is worse. passes: None for float.
    """

    point: Point
    variant: str
    score: Estimate
    drop: float
    compression: float
    passes: bool | None


def degradations(points: Sequence[Point], max_drop: float) -> list[Degradation]:
    """A row for the float model of each problem and for its quantized points, in that order."""
    rows = []
    for problem in dict.fromkeys(point.problem for point in points):
        members = [point for point in points if point.problem == problem]
        reference = next((point for point in members if point.flow == "float"), None)
        if reference is None:
            continue
        sign = 1 if problem.higher_is_better else -1
        for point in members:
            drop = 100 * sign * (reference.test.mean - point.test.mean)
            smaller = reference.costs["size"] / point.costs["size"] if point.costs["size"] else float("inf")
            # 1e-9: a drop of exactly the limit passes, whatever the last digit of the difference is.
            passes = None if point is reference else drop <= max_drop + 1e-9
            rows.append(Degradation(point, _variant(point), point.test, drop, smaller, passes))
    order = ["FP32", *UNIFORM.values(), "mixed"]
    return sorted(rows, key=lambda row: (row.point.problem, order.index(row.variant) if row.variant in order else 9))


def degradation_rows(rows: Iterable[Degradation]) -> list[tuple[str, ...]]:
    """The cells under ``HEADER``. Latency is empty: no variant has real integer execution yet."""
    return [
        (
            row.point.problem.task,
            row.point.problem.model,
            row.point.problem.data,
            row.variant,
            f"{score_text(row.score)} {row.point.problem.score_label}",
            "" if row.passes is None else f"{row.drop:+.2f}",
            f"{row.point.costs['size']:.1f}",
            f"{row.compression:.2f}x",
            f"{row.point.costs['average_bits']:.2f}",
            f"{row.point.costs['bops']:.4g}",
            "-",
            "" if row.passes is None else ("pass" if row.passes else "FAIL"),
        )
        for row in rows
    ]


def degradation_csv(rows: Iterable[Degradation], max_drop: float) -> str:
    """One row per variant, with full precision; ``passes`` is 1 or 0, and empty for float."""
    return csv_text(
        {**row.point.problem._asdict(), "variant": row.variant, "label": row.point.label}
        | {"score": row.score.mean, "score_standard_error": row.score.standard_error, "seeds": row.score.seeds}
        | {"drop_hundredths": row.drop, "size_kb": row.point.costs["size"], "compression": row.compression}
        | {"average_bits": row.point.costs["average_bits"], "bops_millions": row.point.costs["bops"]}
        | {"latency_ms": None, "max_drop": max_drop, "passes": None if row.passes is None else int(row.passes)}
        for row in rows
    )


def _variant(point: Point) -> str:
    if point.flow == "float":
        return "FP32"
    return UNIFORM.get(point.allocation, point.allocation) if point.allocator == "uniform" else "mixed"
