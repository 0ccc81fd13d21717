"""Pictures of what is believed: bars of P(bits) per layer, bands around a front, reliability, and growth of a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qresearch.report.figure import literal, new_figure, png_of
from qresearch.report.posterior import Belief

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = 6  # panels of bars: more cannot be read; of more trials, evenly spaced ones are shown
_BANDS = (("90 %", "5 %", "95 %", 0.18), ("50 %", "25 %", "75 %", 0.35))  # between these quantiles
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def bits_png(found: Sequence[Belief]) -> bytes:
    """A PNG of stacked bars: for every layer, the probability of each option or width. One panel per trial and operand.

    All panels share one colour per option, from few bits (dark) to many (light).
    """
    panels = [(belief, operand) for belief in found for operand in belief.probabilities]
    if len(panels) > _PANELS:
        panels = [panels[round(i * (len(panels) - 1) / (_PANELS - 1))] for i in range(_PANELS)]
    layers = max(len(belief.probabilities[operand]) for belief, operand in panels)
    figure = new_figure(max(7.2, 0.33 * layers + 3), 2.2 * len(panels) + 1)
    for axes, (belief, operand) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels):
        _bars(axes, belief.probabilities[operand])
        axes.set_title(literal(f"{belief.label} {operand}".strip()), fontsize=8)
    return png_of(figure)


def _bars(axes: Axes, probabilities: Mapping[str, Mapping[str, float]]) -> None:
    from matplotlib import colormaps

    names = sorted({name for row in probabilities.values() for name in row}, key=_widths)
    bottom = [0.0] * len(probabilities)
    for i, name in enumerate(names):
        heights = [row.get(name, 0.0) for row in probabilities.values()]
        colour = colormaps["viridis"](i / max(len(names) - 1, 1))
        axes.bar(range(len(heights)), heights, bottom=bottom, color=colour, width=0.85, label=literal(name))
        bottom = [low + height for low, height in zip(bottom, heights)]
    axes.set_xticks(range(len(probabilities)), [literal(name) for name in probabilities], rotation=60, fontsize=6)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right")
        tick.set_rotation_mode("anchor")
    axes.set_ylabel("probability", fontsize=8)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _widths(option: str) -> tuple[float, ...]:
    return tuple(float(part) for part in option.replace("W", "").split("A"))


def bands_png(found: Sequence[Belief], cost: str, unit: str = "") -> bytes:
    """A PNG of the front as a posterior sees it: 50 % and 90 % bands and median of the least validation loss within
    every budget, and the measured loss of what was chosen. One panel.
    """
    own = [belief for belief in found if "front" in belief.posterior]
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    groups: dict[str, list[Belief]] = {}
    for belief in sorted(own, key=lambda belief: _cost(belief, cost)):
        groups.setdefault(str(belief.record.allocation.get("allocator")), []).append(belief)
    for colour, (name, members) in zip(_COLOURS * len(groups), groups.items()):
        x = [_cost(belief, cost) for belief in members]
        fronts = [belief.posterior["front"] for belief in members]
        for level, low, high, alpha in _BANDS:
            below, above = ([front[quantile] for front in fronts] for quantile in (low, high))
            label = literal(f"{name} {level} band")
            axes.fill_between(x, below, above, color=colour, alpha=alpha, linewidth=0, label=label)
        axes.plot(x, [front["50 %"] for front in fronts], color=colour, linewidth=1, label=literal(f"{name} median"))
        measured = [belief.posterior["measured"] for belief in members]
        axes.plot(x, measured, "o", color=colour, markeredgecolor="black", label=literal(f"{name} chosen, measured"))
    axes.set_xlabel(literal(f"{cost} ({unit})" if unit else cost))
    axes.set_ylabel("validation loss")
    if all(belief.posterior["front"]["5 %"] > 0 for belief in own):
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return png_of(figure)


def _cost(belief: Belief, name: str) -> float:
    return belief.record.costs[name] or 0.0


def reliability_png(rows: Mapping[str, Sequence[tuple[float, float, int]]]) -> bytes:
    """A PNG of a reliability diagram: by series, (mean prediction, share observed, count) of bins. Bars are two
    binomial standard errors; on the diagonal, what is predicted happens as often as it is predicted.
    """
    figure = new_figure(5.2, 5.0)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1, label="calibrated")
    for colour, (name, bins) in zip(_COLOURS * len(rows), rows.items()):
        known = [row for row in bins if row[2] > 0]
        errors = [2 * (max(share * (1 - share), 1e-9) / count) ** 0.5 for _, share, count in known]
        x, y = [row[0] for row in known], [row[1] for row in known]
        axes.errorbar(x, y, yerr=errors, color=colour, marker="o", markersize=4, capsize=2, label=literal(name))
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("observed frequency")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return png_of(figure)


def growth_png(curves: Mapping[str, Sequence[tuple[float, float, float, float]]], y_label: str) -> bytes:
    """A PNG of something against the number of measurements: by series, rows of (measurements, mean, least, most)."""
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    for colour, (name, rows) in zip(_COLOURS * len(curves), curves.items()):
        x, mean, low, high = zip(*rows)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, step="post")
        axes.step(x, mean, where="post", color=colour, label=literal(name))
    axes.set_xlabel("allocations measured")
    axes.set_ylabel(literal(y_label))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return png_of(figure)
