"""Two runs held against each other: the trials that both have, with confidence intervals over their common seeds."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qresearch.errors import DataError
from qresearch.report.compare import Paired, in_words, pair
from qresearch.report.figure import literal, new_figure, png_of
from qresearch.report.front import Point, is_seed, leaves, points_of_run
from qresearch.report.table import csv_text, plain_table
from qresearch.results.atomic import write_bytes, write_text
from qresearch.results.run_folder import RunFolder

HEADER = ("trial", "score in A", "score in B", "B − A", "seeds", "real")
_MATCHED = "matched by task, model, data, flow, quantizer, methods, allocator, and bits or budget"
_DRAWN = 60  # rows of a picture: more cannot be read
_LISTED = 8  # names in a line


class Match(NamedTuple):
    """A point of A, one of B with the same key, and B − A."""

    a: Point
    b: Point
    paired: Paired


class RunComparison(NamedTuple):
    """Two runs: what both have, what only one has (labels), and the config entries, besides seeds, in which matched
    trials differ.
    """

    names: tuple[str, str]
    matches: tuple[Match, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    settings: tuple[str, ...]


def compare_runs(a: RunFolder, b: RunFolder) -> RunComparison:
    """Every pair of matching points. ``DataError`` if there is none.

    Points match that have the same problem, flow, quantizer, methods, allocator, and bits or budget; where a run has
    several of those, their labels must agree, too. A searched allocation may have other bits in either run: it is the
    search that is compared.
    """
    points_a, points_b = (points_of_run(run, run.records().records) for run in (a, b))
    pairs = _matching(points_a, points_b)
    if not pairs:
        raise DataError(
            f"{a.path.name} and {b.path.name}: nothing to compare, of {len(points_a)} and {len(points_b)} points none"
            f" is in both ({_MATCHED})"
        )
    examples_a, examples_b = (_examples(run, points) for run, points in ((a, points_a), (b, points_b)))
    matches = tuple(Match(ours, theirs, pair(theirs, ours, examples_b, examples_a)) for ours, theirs in pairs)
    found_a, found_b = ({id(match[i]) for match in matches} for i in (0, 1))
    return RunComparison(
        (a.path.name, b.path.name),
        matches,
        tuple(point.label for point in points_a if id(point) not in found_a),
        tuple(point.label for point in points_b if id(point) not in found_b),
        tuple(_settings(pairs)),
    )


def comparison_text(found: RunComparison) -> str:
    """What was matched, in what the runs differ, and one row per match."""
    lines = [f"A: {found.names[0]}", f"B: {found.names[1]}"]
    lines.append(f"{len(found.matches)} points in both, {_MATCHED}")
    for name, labels in (("A", found.only_a), ("B", found.only_b)):
        if labels:
            more = f" and {len(labels) - _LISTED} more" if len(labels) > _LISTED else ""
            lines.append(f"{len(labels)} only in {name}: {'; '.join(labels[:_LISTED])}{more}")
    settings = "; ".join(found.settings) or "seeds at most: what differs is the code, the device, or chance"
    lines.append(f"their configs differ in {settings}")
    scores = ", ".join(sorted({match.a.problem.score_label for match in found.matches}))
    lines.append(f"test {scores}; B − A with its 95 % interval, a paired bootstrap over common seeds and test examples")
    lines.append("each row is tested by itself: of twenty rows without a difference, one looks real")
    return "\n".join(lines) + "\n\n" + plain_table(HEADER, [_row(match) for match in found.matches])


def write_comparison(found: RunComparison, folder: Path) -> list[Path]:
    """``compare-<A>.csv`` and ``compare-<A>.png`` in a folder; returns their paths."""
    paths = [folder / f"compare-{found.names[0]}.{ending}" for ending in ("csv", "png")]
    write_text(paths[0], csv_text(_csv_row(match) for match in found.matches))
    write_bytes(paths[1], comparison_png(found))
    return paths


def comparison_png(found: RunComparison) -> bytes:
    """A PNG of B − A with its interval, one line per match that has one; on the right of 0, B has the higher score."""
    rows = [match for match in found.matches if match.paired.difference is not None]
    shown = rows[:_DRAWN]
    figure = new_figure(9.0, 1.6 + 0.28 * max(len(shown), 1))
    axes = figure.subplots()
    axes.axvline(0, color="#888888", linewidth=1)
    for y, match in enumerate(shown):
        difference = match.paired.difference
        assert difference is not None
        real = not difference.low <= 0 <= difference.high
        axes.plot([difference.low, difference.high], [y, y], color="#0072B2" if real else "#999999", linewidth=2)
        axes.plot(difference.mean, y, "o", color="#0072B2" if real else "#999999", markersize=5)
    axes.set_yticks(range(len(shown)), [literal(match.a.label) for match in shown], fontsize=8)
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    scores = ", ".join(sorted({match.a.problem.score_label for match in found.matches}))
    axes.set_xlabel(literal(f"test {scores}: B − A, 95 % intervals; coloured where they do not hold 0"))
    left_out = f" ({len(shown)} of {len(found.matches)} shown)" if len(shown) < len(found.matches) else ""
    axes.set_title(literal(f"B {found.names[1]} against A {found.names[0]}{left_out}"), fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    return png_of(figure)


def _matching(points_a: Sequence[Point], points_b: Sequence[Point]) -> list[tuple[Point, Point]]:
    groups_a, groups_b = _by_key(points_a), _by_key(points_b)
    pairs = []
    for key, own in groups_a.items():
        others = groups_b.get(key, [])
        if len(own) == len(others) == 1:
            pairs.append((own[0], others[0]))
        else:
            labelled = {point.label: point for point in others}
            pairs += [(point, labelled[point.label]) for point in own if point.label in labelled]
    return pairs


def _by_key(points: Sequence[Point]) -> dict[Any, list[Point]]:
    groups = collections.defaultdict(list)
    for point in points:
        key = (point.problem, point.flow, point.quantizer, point.methods, point.allocator, point.allocation)
        groups[key].append(point)
    return groups


def _examples(run: RunFolder, points: Sequence[Point]) -> dict[str, Any]:
    loaded = ((record.key, run.examples(record)) for point in points for record in point.records)
    return {key: examples["score"] for key, examples in loaded if examples is not None}


def _settings(pairs: Sequence[tuple[Point, Point]]) -> list[str]:
    """``name: value in A → value in B``, of every entry in which a pair differs."""
    found: dict[str, None] = {}
    for a, b in pairs:
        ours, theirs = (dict(leaves(point.records[0].config)) for point in (a, b))
        for name in sorted(ours.keys() | theirs.keys()):
            if not is_seed(name) and ours.get(name) != theirs.get(name):
                found[f"{name}: {ours.get(name)} → {theirs.get(name)}"] = None
    return list(found)


def _row(match: Match) -> tuple[str, ...]:
    paired = match.paired
    if not paired.seeds:
        return match.a.label, "-", "-", "-", "0", "unknown: no seed in both"
    own = paired.difference
    interval = "-" if own is None else f"{own.mean:+.4f} [{own.low:+.4f}, {own.high:+.4f}]"
    words = in_words(paired, "B", match.a.problem.higher_is_better)
    return match.a.label, f"{paired.b:.4f}", f"{paired.a:.4f}", interval, str(paired.seeds), words


def _csv_row(match: Match) -> dict[str, Any]:
    paired, own = match.paired, match.paired.difference
    row: dict[str, Any] = {"label": match.a.label, **match.a.problem._asdict(), "seeds": paired.seeds}
    scores = (None if math.isnan(score) else score for score in (paired.b, paired.a))
    row |= dict(zip(("score_a", "score_b"), scores))
    for name in ("mean", "low", "high"):
        row["difference" if name == "mean" else name] = None if own is None else getattr(own, name)
    return row | {f"average_bits_{name}": point.costs["average_bits"] for name, point in zip("ab", match[:2])}
