"""What the terminal prints of a run: the front, mixed against uniform, failures and damaged files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qresearch.errors import DataError
from qresearch.report.additivity import HEADER, additivity_rows
from qresearch.report.compare import Comparison, mixed_versus_uniform
from qresearch.report.front import direction, front, points_of_run
from qresearch.report.searches import HEADER as SEARCHES
from qresearch.report.searches import report_settings, search_rows
from qresearch.report.table import COMPARISON_HEADER, FRONT_HEADER, comparison_rows, front_rows, plain_table
from qresearch.results.record import Record
from qresearch.results.run_folder import RunFolder


def run_tables(run: RunFolder) -> Iterator[str]:
    """The tables of a run as text, those with rows only. ``DataError`` if it holds no record at all."""
    stored = run.records()
    if not stored.records and not stored.invalid:
        raise DataError(f"{run.path}: no finished trial yet; run the sweep again")
    points = points_of_run(run, stored.records)
    if points:
        title = "; ".join(filter(None, ("front (*: on it by validation score; scores: test", direction(points))))
        yield f"{title})\n" + plain_table(FRONT_HEADER, front_rows(points, front(points)))
    rows = comparison_rows(comparisons(run, (record for point in points for record in point.records)))
    if rows:
        yield "mixed against uniform (test, 95 % paired bootstrap)\n" + plain_table(COMPARISON_HEADER, rows)
    if searches := search_rows(points, report_settings(run)):
        yield "searches (test scores; seconds and measured allocations per budget)\n" + plain_table(SEARCHES, searches)
    if joint := additivity_rows(run):
        yield "sums of sensitivities against the loss of random joint allocations\n" + plain_table(HEADER, joint)
    failed = [(record.label, record.reason or "") for record in stored.records if record.status == "failed"]
    if failed:
        yield "failed\n" + plain_table(("trial", "reason"), failed)
    if stored.invalid:
        damaged = [(str(path.relative_to(run.path)), reason) for path, reason in stored.invalid]
        yield "invalid records, left out\n" + plain_table(("file", "reason"), damaged)


def comparisons(run: RunFolder, done: Iterable[Record]) -> list[Comparison]:
    """Mixed against uniform for these records of a run, with their stored per-example scores."""
    records = list(done)
    loaded = ((record.key, run.examples(record)) for record in records)
    return list(mixed_versus_uniform(records, {key: e["score"] for key, e in loaded if e is not None}))
