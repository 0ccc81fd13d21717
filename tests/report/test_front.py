from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_fixtures import make_record

from qresearch.report.front import estimate, front, points_of


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_estimate_is_the_textbook_formula(values):
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)
    assert found.seeds == len(values)


def test_one_seed_has_no_standard_error():
    assert estimate([0.9]) == (0.9, None, 1)


def test_seeds_are_one_point_and_everything_else_is_not():
    records = [
        make_record(seed=seed, bits=bits, quantizer=quantizer, flow=flow, score=0.5 + 0.1 * seed)
        for seed, bits, quantizer, flow in itertools.product(range(3), (3, 4), ("lsq", "pact"), ("ptq", "qat"))
    ]
    points = points_of(records[::-1])
    assert len(points) == 8
    assert all([record.seed for record in point.records] == [0, 1, 2] for point in points)
    assert all(point.test == estimate([0.5, 0.6, 0.7]) for point in points)
    assert len({point.label for point in points}) == 8


def test_budgeted_allocations_may_differ_by_seed_and_their_costs_are_averaged():
    allocation = make_record(allocator="exact", budget=4).allocation
    pairs = ([[4, 4]] * 3, [[8, 8], [2, 2], [2, 2]])
    costs = make_record().costs
    records = [
        make_record(
            seed=seed,
            allocator="exact",
            budget=4,
            allocation={**allocation, "bits": bits},
            costs={**costs, "average_bits": average},
        )
        for seed, (bits, average) in enumerate(zip(pairs, (4, 3)))
    ]
    (point,) = points_of(records)
    assert point.costs["average_bits"] == 3.5
    assert point.label == "qat lsq exact average_bits 4"


def test_hyperparameters_split_points_and_name_them():
    base = make_record().config
    records = [
        make_record(seed=seed, config={**base, "seed": seed, "train": {"lr": lr, "seed": 7 + seed}})
        for seed, lr in itertools.product(range(2), (0.1, 0.01))
    ]
    points = points_of(records)
    labels = {"qat lsq uniform W4A4 train.lr=0.1", "qat lsq uniform W4A4 train.lr=0.01"}
    assert {point.label for point in points} == labels
    assert [point.test.seeds for point in points] == [2, 2]


def test_treatment_of_pinned_layers_splits_points():
    allocation = make_record().allocation
    records = [make_record(allocation={**allocation, "treatment": text}) for text in ("first at 8 bits", "none")]
    assert len(points_of(records)) == 2


def test_pinned_layers_do_not_rename_the_point():
    bits = [[8, 8], [4, 4], [4, 4]]
    (point,) = points_of([make_record(allocation={**make_record().allocation, "bits": bits})])
    assert point.label == "qat lsq uniform W4A4"


def test_failed_trials_are_no_points():
    assert points_of([make_record(status="failed", reason="loss became NaN")]) == ()


def test_front_is_chosen_on_validation_data():
    bits = {"cheap": 2, "beaten": 4, "lucky": 4, "good": 4}
    scores = {"cheap": (0.7, 0.7), "beaten": (0.6, 0.6), "lucky": (0.99, 0.8), "good": (0.9, 0.91)}
    records = [
        make_record(bits=bits[name], quantizer=name, score=test, validation=validation)
        for name, (test, validation) in scores.items()
    ]
    points = points_of([*records, make_record(flow="float", score=0.95)])
    assert {points[i].quantizer for i in front(points)} == {"cheap", "good"}


def test_float_is_its_own_point_first_and_on_no_front():
    points = points_of([make_record(score=0.5), make_record(flow="float", score=0.95)])
    assert [point.label for point in points] == ["float", "qat lsq uniform W4A4"]
    assert front(points) == (1,)
    assert front(points[:1]) == ()


def test_front_over_another_cost():
    costs = make_record().costs
    records = [
        make_record(quantizer=name, bits=bits, score=score, costs={**costs, "average_bits": bits, "bops": bops})
        for name, bits, score, bops in (("a", 2, 0.8, 9), ("b", 4, 0.9, 1))
    ]
    points = points_of(records)
    assert len(front(points)) == 2
    assert [points[i].quantizer for i in front(points, cost="bops")] == ["b"]


def test_problems_have_fronts_of_their_own():
    points = points_of([make_record(data="a", score=0.9, bits=2), make_record(data="b", score=0.5, bits=4)])
    assert front(points) == (0, 1)


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 10)), min_size=1, max_size=12))
def test_front_membership_equals_brute_force(pairs):
    records = [make_record(bits=bits, score=score / 10, quantizer=f"q{i}") for i, (bits, score) in enumerate(pairs)]
    points = points_of(records)
    on_front = set(front(points))
    outcomes = [(point.costs["average_bits"], point.validation.mean) for point in points]
    for i, (cost, score) in enumerate(outcomes):
        beaten = any((c <= cost and s >= score) and (c, s) != (cost, score) for c, s in outcomes)
        if beaten:
            assert i not in on_front
    # Equal points stand for each other: of every unbeaten outcome exactly one is kept.
    unbeaten = {(c, s) for c, s in outcomes if not any(d <= c and t >= s and (d, t) != (c, s) for d, t in outcomes)}
    assert sorted(unbeaten) == sorted(outcomes[i] for i in on_front)
