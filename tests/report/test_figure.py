from __future__ import annotations

import io
from dataclasses import replace

import pytest
from results_fixtures import make_record

from qresearch.report.figure import front_png
from qresearch.report.front import front, points_of


def points(**fields):
    records = [
        make_record(seed=seed, bits=bits, quantizer=quantizer, score=0.8 + 0.02 * bits + 0.003 * seed, **fields)
        for seed in range(3)
        for bits in (2, 3, 4)
        for quantizer in ("lsq", "pact")
    ]
    mixed = [make_record(bits=bits - 0.1, allocator="exact", budget=bits, score=0.9, **fields) for bits in (2, 4)]
    return points_of([*records, *mixed, make_record(flow="float", score=0.97, **fields)])


def test_same_records_give_the_same_small_png():
    found = points()
    first, second = front_png(found, front(found)), front_png(found, front(found))
    assert first == second
    assert first.startswith(b"\x89PNG\r\n")
    assert len(first) < 300_000
    # tEXt and tIME chunks would hold versions and dates.
    assert b"tIME" not in first
    assert b"Software" not in first


def test_the_picture_shows_the_scores_the_front_and_the_float_model():
    found = points()
    pictures = {
        front_png(found, front(found)),
        front_png(found, ()),
        front_png(found[1:], [i - 1 for i in front(found)]),
        front_png(found[:-1], [i for i in front(found) if i < len(found) - 1]),
    }
    assert len(pictures) == 4


def test_one_panel_per_problem():
    from matplotlib.image import imread

    one, two = points(), points_of([r for d in ("a", "b") for p in points(data=d) for r in p.records])
    heights = [imread(io.BytesIO(front_png(p, front(p))), format="png").shape[0] for p in (one, two)]
    assert heights[1] == 2 * heights[0]


def test_a_legend_of_many_series_stands_beside_the_panel():
    from matplotlib.image import imread

    few, many = (points_of([make_record(quantizer=f"method{i}") for i in range(number)]) for number in (8, 60))
    shapes = [imread(io.BytesIO(front_png(p, front(p))), format="png").shape for p in (few, many)]
    assert shapes[1][0] == shapes[0][0]
    assert shapes[1][1] > 1.5 * shapes[0][1]


@pytest.mark.parametrize("name", ["a$b", "_hidden", r"$\frac$", "${", "<b>", "a" * 300])
def test_strange_names_draw(name):
    found = points_of([make_record(quantizer=name, model=name, score_name=name), make_record(flow="float", model=name)])
    assert front_png(found, front(found)).startswith(b"\x89PNG")


def test_global_state_is_left_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    front_png(points(), ())
    assert dict(matplotlib.rcParams) == before


def test_the_cost_of_the_picture_may_be_any_that_points_have():
    found = points()
    on_front = front(found)
    assert front_png(found, on_front, "bops") != front_png(found, on_front)
    priced = [replace(p, costs={**p.costs, "latency": 3.0}) for p in found]
    assert front_png(priced, on_front, "latency") != front_png([*priced[:-1], found[-1]], on_front, "latency")
    assert front_png(found, on_front, "latency").startswith(b"\x89PNG")  # nobody has it: an empty panel
