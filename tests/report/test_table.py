from __future__ import annotations

import csv
import io

import pytest
from results_fixtures import LAYERS, make_record
from rich.console import Console

from qresearch.report.compare import Comparison, Difference
from qresearch.report.front import front, points_of
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


@pytest.fixture
def points():
    records = [make_record(seed=seed, bits=bits, score=0.1 * bits + 0.01 * seed) for seed in (0, 1) for bits in (2, 4)]
    return points_of([*records, make_record(bits=8, score=0.2), make_record(flow="float", score=0.95)])


def test_front_csv_reads_back(points):
    rows = list(csv.DictReader(io.StringIO(front_csv(points, front(points)))))
    assert [row["label"] for row in rows] == [point.label for point in points]
    assert [row["front"] for row in rows] == ["0", "1", "1", "0"]
    for row, point in zip(rows, points):
        assert float(row["test_score"]) == point.test.mean
        assert float(row["average_bits"]) == point.costs["average_bits"]
        assert row["test_score_standard_error"] == ("" if point.test.seeds == 1 else repr(point.test.standard_error))


def test_allocations_csv_has_one_row_per_trial_and_layer(points):
    rows = list(csv.DictReader(io.StringIO(allocations_csv(points))))
    assert len(rows) == len(LAYERS) * sum(point.test.seeds for point in points)
    assert {row["layer"] for row in rows} == set(LAYERS)
    assert [(row["weight_bits"], row["input_bits"]) for row in rows[:1]] == [("32", "32")]


def test_front_rows(points):
    rows = front_rows(points, front(points))
    assert [row[0] for row in rows] == ["", "*", "*", ""]
    assert rows[0][-1] == "float"
    assert rows[1][1:] == ("2.00", "5.0", "0.003906", "0.2050 ± 0.0050", "qat", "lsq", "uniform W2A2")
    assert "(1 seed)" in rows[3][4]


def test_plain_table_is_aligned(points):
    lines = plain_table(FRONT_HEADER, front_rows(points, front(points))).splitlines()
    assert len(lines) == 5
    column = lines[0].index("average_bits")
    assert all(line[column - 2 : column] == "  " or line[column - 1] == " " for line in lines)
    assert all(line[column] != " " for line in lines)
    assert plain_table(("a", "b"), []) == "a  b\n"


def test_rich_table_shows_every_cell_and_reads_no_markup():
    console = Console(width=200, file=io.StringIO())
    console.print(rich_table(("", "[b]name"), [("*", "[red]x[/red]"), ("", "[/]")]))
    shown = console.file.getvalue()
    assert all(text in shown for text in ("[b]name", "[red]x[/red]", "[/]"))


def test_comparison_rows():
    known = Comparison("u", "m", 4, 3.98, 0.8, 0.9, Difference(0.1, 0.05, 0.15, 1), 3, "yes, mixed is better")
    unknown = known._replace(difference=None, real="unknown")
    rows = comparison_rows([known, unknown])
    assert all(len(row) == len(COMPARISON_HEADER) for row in rows)
    assert rows[0][5] == "+0.1000 [+0.0500, +0.1500]"
    assert rows[1][5] == "-"
