"""The points of a run as tables: CSV files for other tools, aligned text or a rich table for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qresearch.report.compare import Comparison
from qresearch.report.front import Estimate, Point

if TYPE_CHECKING:
    from rich.table import Table

FRONT_HEADER = ("", "average_bits", "size kB", "relative bops", "score", "flow", "quantizer", "allocation")
COMPARISON_HEADER = ("uniform", "mixed", "average_bits", "uniform score", "mixed score", "difference", "real")


def front_csv(points: Sequence[Point], on_front: Collection[int]) -> str:
    """One row per point, with full precision; ``front`` is 1 for the points whose index is in ``on_front``."""
    rows: list[dict[str, Any]] = []
    for index, point in enumerate(points):
        row: dict[str, Any] = {"label": point.label, **point.problem._asdict(), "flow": point.flow}
        row.update(quantizer=point.quantizer, methods=point.methods)
        row.update(allocator=point.allocator, allocation=point.allocation)
        row.update(seeds=point.test.seeds, average_bits=point.costs["average_bits"], size_kb=point.costs["size"])
        row.update(bops_millions=point.costs["bops"], relative_bops=point.costs["relative_bops"])
        for split, value in (("test", point.test), ("validation", point.validation)):
            row[f"{split}_score"], row[f"{split}_score_standard_error"] = value.mean, value.standard_error
        row.update(front=int(index in on_front), treatment=point.treatment)
        rows.append(row)
    return csv_text(rows)


def allocations_csv(points: Sequence[Point]) -> str:
    """One row per point, seed and layer: its weight bits and input bits."""
    return csv_text(
        {"label": point.label, "seed": record.seed, "key": record.key[:8], "layer": layer}
        | {"weight_bits": weight_bits, "input_bits": input_bits}
        for point in points
        for record in point.records
        for layer, (weight_bits, input_bits) in zip(record.allocation["layers"], record.allocation["bits"])
    )


def front_rows(points: Sequence[Point], on_front: Collection[int]) -> list[tuple[str, ...]]:
    """The cells under ``FRONT_HEADER``; points on the front are marked with ``*``."""
    return [
        (
            "*" if index in on_front else "",
            f"{point.costs['average_bits']:.2f}",
            f"{point.costs['size']:.1f}",
            f"{point.costs['relative_bops']:.4g}",
            score_text(point.test),
            point.flow,
            point.quantizer if point.methods == "-" else f"{point.quantizer} {point.methods}",
            _allocation_cell(point),
        )
        for index, point in enumerate(points)
    ]


def comparison_rows(comparisons: Iterable[Comparison]) -> list[tuple[str, ...]]:
    """The cells under ``COMPARISON_HEADER``."""
    return [
        (
            row.uniform,
            row.mixed,
            f"{row.average_bits:.2f} / {row.mixed_average_bits:.2f}",
            f"{row.uniform_score:.4f}",
            f"{row.mixed_score:.4f}",
            "-"
            if row.difference is None
            else f"{row.difference.mean:+.4f} [{row.difference.low:+.4f}, {row.difference.high:+.4f}]",
            row.real,
        )
        for row in comparisons
    ]


def score_text(value: Estimate) -> str:
    """A mean and its standard error, or what is missing for one."""
    return f"{value.mean:.4f} " + ("(1 seed)" if value.standard_error is None else f"± {value.standard_error:.4f}")


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as aligned text, one line per row, without line breaks and escapes, which a reason may hold."""
    rows = [["".join(c if c.isprintable() else " " for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (header, *rows))
    return "\n".join(lines) + "\n"


def rich_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Cells as a table for a rich console. Cells are text: no markup in them is read."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*(Text(cell, style="bold" if row[0] == "*" else "") for cell in row))
    return table


def _allocation_cell(point: Point) -> str:
    """The allocator and all that follows it in the label: the allocation, and what tells equal ones apart."""
    if point.flow == "float":
        return point.label
    rest = point.label.removeprefix(point.series).strip()
    return rest if point.allocator == "-" else f"{point.allocator} {rest}"


def csv_text(rows: Iterable[dict[str, Any]]) -> str:
    """Rows of equal keys as CSV, with a header."""
    listed = list(rows)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(listed[0]) if listed else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return stream.getvalue()
