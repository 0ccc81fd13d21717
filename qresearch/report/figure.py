"""The front as a picture: score against average bits. The same records give the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from qresearch.cost import COSTS
from qresearch.report.front import Point, Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, https://jfly.uni-koeln.de/color/, 2008, without the yellow that white paper swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"
_LINES = ("-", "--", "-.", ":")
_LONGEST = 80  # characters of a name, at which a panel beside its legend is still a panel
_INSIDE, _COLUMN = 10, 22  # legend entries that fit into a panel, and into a column of its height beside it


def front_png(points: Sequence[Point], on_front: Collection[int], cost: str = "average_bits") -> bytes:
    """A PNG with one panel per problem: mean test score ± one standard error over seeds at every cost.

    Lines join points of one flow, quantizer and allocator; rings mark the front; a dashed line is the float model.
    Points without that cost are left out.
    """
    problems = sorted({point.problem for point in points})
    columns = max((_columns(len(_series_of(points, problem))) for problem in problems), default=0)
    figure = new_figure(7.2 + 2.5 * columns, 4.4 * len(problems))
    panels = figure.subplots(len(problems), 1, squeeze=False)[:, 0]
    for axes, problem in zip(panels, problems):
        own = [(i in on_front, p) for i, p in enumerate(points) if p.problem == problem and cost in p.costs]
        _panel(axes, problem, own, cost)
    return png_of(figure)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    # Figure and the Agg canvas directly: pyplot would start a window system and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG without versions or dates: the same picture is the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: Axes, problem: Problem, points: Sequence[tuple[bool, Point]], cost: str) -> None:
    quantized = [point for _, point in points if point.flow != "float"]
    names = _series_of(quantized, problem)
    for index, series in enumerate(names):
        _series(axes, index, [point for point in quantized if point.series == series], cost)
    for _, point in points:
        if point.flow == "float":
            label = literal(f"{point.label} ({point.test.mean:.4f})")
            axes.axhline(point.test.mean, color="#555555", linestyle="--", linewidth=1, label=label)
    ringed = [point for marked, point in points if marked]
    if ringed:
        x, y = [p.costs[cost] for p in ringed], [p.test.mean for p in ringed]
        label = "front (chosen on validation data)"
        axes.scatter(x, y, s=130, facecolors="none", edgecolors="#333333", linewidths=1.3, zorder=3, label=label)
    unit = COSTS[cost].unit if cost in COSTS else ""
    axes.set_xlabel(literal("average bits" if cost == "average_bits" else f"{cost} ({unit})" if unit else cost))
    axes.set_ylabel(literal(f"test {problem.score_label}"))
    axes.set_title(literal(f"{problem.model} · {problem.data}"), fontsize=10)
    axes.grid(alpha=0.25)
    columns = _columns(len(names))
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "ncols": columns} if columns else {}
    if points:
        axes.legend(fontsize=7 if columns else 8, **beside)


def _series_of(points: Sequence[Point], problem: Problem) -> list[str]:
    return sorted({point.series for point in points if point.problem == problem and point.flow != "float"})


def _columns(series: int) -> int:
    """The columns of a legend beside the panel; 0 where it fits inside."""
    return 0 if series <= _INSIDE else math.ceil((series + 2) / _COLUMN)


def _series(axes: Axes, index: int, points: Sequence[Point], cost: str) -> None:
    ordered = sorted(points, key=lambda point: point.costs[cost])
    axes.errorbar(
        [point.costs[cost] for point in ordered],
        [point.test.mean for point in ordered],
        yerr=[point.test.standard_error or 0.0 for point in ordered],
        color=_COLOURS[index % len(_COLOURS)],
        marker=_MARKERS[index % len(_MARKERS)],
        linestyle=_LINES[index // len(_COLOURS) % len(_LINES)],
        markersize=5,
        linewidth=1.2,
        capsize=3,
        label=literal(ordered[0].series),
    )


def literal(text: str) -> str:
    """Names come from records: a dollar sign in one is no mathematics, a leading underscore hides no legend entry, and
    a long one leaves room for the axes.
    """
    shown = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return shown.replace("$", r"\$").lstrip("_")
