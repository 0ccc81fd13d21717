"""Front, tables, figure and page of a run, from its records alone: nothing here runs a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qresearch.cost import COSTS
from qresearch.errors import DataError
from qresearch.report.additivity import ABOUT as ADDITIVITY
from qresearch.report.additivity import HEADER as ADDITIVITY_HEADER
from qresearch.report.additivity import additivity_rows
from qresearch.report.benchmark import HEADER as BENCHMARK_HEADER
from qresearch.report.benchmark import degradation_csv, degradation_rows, degradations
from qresearch.report.compare import mixed_versus_uniform, paired_difference
from qresearch.report.explorer import NEEDS, explorer_html
from qresearch.report.explorer_data import config_text, environment_texts
from qresearch.report.figure import front_png
from qresearch.report.front import Point, direction, front, points_of, points_of_run
from qresearch.report.html import Section, report_html
from qresearch.report.posterior import ABOUT as POSTERIOR
from qresearch.report.posterior import HEADER as POSTERIOR_HEADER
from qresearch.report.posterior import Belief, beliefs, posterior_rows, probabilities_csv
from qresearch.report.posterior_figure import bands_png, bits_png
from qresearch.report.searches import HEADER as SEARCHES_HEADER
from qresearch.report.searches import about_searches, report_settings, search_points, search_rows, searches_csv
from qresearch.report.table import (
    COMPARISON_HEADER,
    FRONT_HEADER,
    allocations_csv,
    comparison_rows,
    front_csv,
    front_rows,
    plain_table,
    rich_table,
)
from qresearch.report.terminal import comparisons, run_tables
from qresearch.results.atomic import write_bytes, write_text
from qresearch.results.record import Record
from qresearch.results.run_folder import RunFolder, Stored

__all__ = [
    "BENCHMARK_HEADER",
    "COMPARISON_HEADER",
    "FRONT_HEADER",
    "Point",
    "comparison_rows",
    "degradation_csv",
    "degradation_rows",
    "degradations",
    "front",
    "front_rows",
    "mixed_versus_uniform",
    "paired_difference",
    "plain_table",
    "points_of",
    "rich_table",
    "run_tables",
    "write_explorer",
    "write_report",
]


def write_report(run: RunFolder) -> list[Path]:
    """Writes ``front.csv``, ``allocations.csv``, ``front.png`` and ``report.html`` into the run's folder; where
    searches are compared, ``searches.csv`` and ``searches.png`` too, over the cost that the config reports; and where
    they say how sure they are, ``probabilities.csv``, ``bits.png`` and ``bands.png``.

    Returns their paths. ``DataError`` if no trial of the run has finished.
    """
    stored = run.records()
    points = points_of_run(run, stored.records)
    if not points:
        failed = sum(record.status == "failed" for record in stored.records)
        raise DataError(
            f"{run.path}: no finished trial to report ({failed} failed, {len(stored.invalid)} invalid);"
            " resume the sweep first"
        )
    on_front = front(points)
    picture = front_png(points, on_front)
    names = ("front.csv", "allocations.csv", "front.png", "report.html")
    paths = [run.path / name for name in names]
    write_text(paths[0], front_csv(points, on_front))
    write_text(paths[1], allocations_csv(points))
    write_bytes(paths[2], picture)
    sections = _sections(run, stored, points, on_front)
    write_text(paths[3], report_html(run.path.name, picture, _picture_text(points, on_front), sections))
    settings = report_settings(run)
    if rows := search_rows(points, settings):
        cost = settings.get("cost", "average_bits")
        paths += [run.path / "searches.csv", run.path / "searches.png"]
        write_text(paths[-2], searches_csv(rows))
        compared = search_points(points)
        write_bytes(paths[-1], front_png(compared, front(compared, cost), cost))
    return paths + _write_beliefs(run, beliefs(points), settings.get("cost", "average_bits"))


def write_explorer(runs: Sequence[RunFolder], out: Path) -> str:
    """Writes the interactive page of these runs; returns its path, or what must be installed for it, as one line."""
    page = explorer_html(runs)
    if page is None:
        return f"no interactive page: it needs Plotly; {NEEDS}"
    write_text(out, page)
    return str(out)


def _write_beliefs(run: RunFolder, found: list[Belief], cost: str) -> list[Path]:
    """``probabilities.csv`` and ``bits.png`` where searches say how sure they are; ``bands.png`` of bands of losses."""
    if not found:
        return []
    paths = [run.path / "probabilities.csv", run.path / "bits.png"]
    write_text(paths[0], probabilities_csv(found))
    write_bytes(paths[1], bits_png(found))
    if any("front" in belief.posterior for belief in found):
        paths.append(run.path / "bands.png")
        write_bytes(paths[2], bands_png(found, cost, COSTS[cost].unit if cost in COSTS else ""))
    return paths


def _sections(run: RunFolder, stored: Stored, points: tuple[Point, ...], on_front: tuple[int, ...]) -> list[Section]:
    failed = [record for record in stored.records if record.status == "failed"]
    done = [record for point in points for record in point.records]
    counts = f"{len(done)} trials done, {len(failed)} failed, {len(stored.invalid)} invalid. "
    about = "Test scores, mean ± standard error over seeds; * marks the front, chosen on validation data."
    about += f" {direction(points).capitalize()}." if direction(points) else ""
    sections = [Section("Front", counts + about, FRONT_HEADER, front_rows(points, on_front)), _comparison(run, done)]
    settings = report_settings(run)
    if searches := search_rows(points, settings):
        sections.append(Section("Searches", about_searches(settings), SEARCHES_HEADER, searches))
    if believed := posterior_rows(beliefs(points)):
        sections.append(Section("Posteriors", POSTERIOR, POSTERIOR_HEADER, believed))
    if joint := additivity_rows(run):
        sections.append(Section("Additivity", ADDITIVITY, ADDITIVITY_HEADER, joint))
    if failed:
        rows = [(record.label, str(record.seed), record.reason or "") for record in failed]
        sections.append(Section("Failed trials", "", ("trial", "seed", "reason"), rows))
    if stored.invalid:
        invalid = [(str(path.relative_to(run.path)), reason) for path, reason in stored.invalid]
        sections.append(Section("Invalid records", "Left out of everything above.", ("file", "reason"), invalid))
    treatments = sorted({point.treatment for point in points})
    sections.append(Section("Pinned layers", " · ".join(treatments)))
    sections.append(Section("Config", "", preformatted=config_text(run)))
    sections.append(Section("Environment", "", preformatted="\n".join(environment_texts(done))))
    return sections


def _comparison(run: RunFolder, done: list[Record]) -> Section:
    rows = comparison_rows(comparisons(run, done))
    about = (
        "Test score of mixed minus uniform at equal average bits, with a 95 % interval from a paired bootstrap over"
        " seeds and test examples. Each row is tested by itself: of twenty rows without a difference, one looks real."
    )
    if not rows:
        return Section("Mixed against uniform", "No mixed and uniform allocation of equal average bits in this run.")
    return Section("Mixed against uniform", about, COMPARISON_HEADER, rows)


def _picture_text(points: tuple[Point, ...], on_front: tuple[int, ...]) -> str:
    chosen = (f"{points[i].costs['average_bits']:.2f} bits {points[i].test.mean:.4f}" for i in on_front)
    return "Test score against average bits. On the front: " + "; ".join(chosen)
