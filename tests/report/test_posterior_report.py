"""What searches believe, in tables and pictures: the numbers are those of the records."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from results_fixtures import ENVIRONMENT, make_record

from qresearch.report import write_report
from qresearch.report.front import points_of
from qresearch.report.posterior import HEADER, beliefs, posterior_rows, probabilities_csv
from qresearch.report.posterior_figure import bands_png, bits_png, growth_png, reliability_png
from qresearch.results.run_folder import create_run

LAYERS = ("conv1/kernel", "conv2/kernel", "linear/kernel")
LEVELS = ("5 %", "25 %", "50 %", "75 %", "95 %")


DIAGNOSTICS = {"divergent": 0.0, "r_hat": 1.01, "samples": 300.0, "single_p": 0.5, "joint_p": 0.004, "trend_p": 0.3}


def quantiles(first, step, shift):
    return {level: first + step * i + shift for i, level in enumerate(LEVELS)}


def believed(budget=4.0, shift=0.0, **fields):
    posterior = {
        "probabilities": {layer: {"W2A4": 0.25, "W8A8": 0.75} for layer in LAYERS},
        "optimal": 0.62,
        "regret": 0.001,
        "measured": 0.3 + shift,
        "loss": quantiles(0.1, 0.1, shift),
        "front": quantiles(0.1, 0.05, shift),
        "diagnostics": DIAGNOSTICS,
    }
    return record_with({"posterior": posterior}, budget, **fields)


def record_with(search, budget, **fields):
    metrics = {**make_record().metrics, "search": {"seconds": 1.0, **search}}
    return make_record(flow="ptq", allocator="bayesian", budget=budget, bits=budget, metrics=metrics, **fields)


def test_rows_are_the_records_numbers():
    found = beliefs(points_of([believed(), make_record(), make_record(flow="float")]))
    (row,) = posterior_rows(found)
    assert dict(zip(HEADER, row))["P(optimal)"] == "0.62"
    assert dict(zip(HEADER, row))["90 % band"] == "0.1 to 0.5"
    assert dict(zip(HEADER, row))["least p"] == "0.004"
    cells = list(csv.DictReader(io.StringIO(probabilities_csv(found))))
    assert len(cells) == 6
    assert {(cell["layer"], cell["option"]): cell["probability"] for cell in cells}["linear/kernel", "W2A4"] == "0.25"


def test_learned_shares_have_one_panel_per_operand_with_a_choice():
    both = {"weight": {"0": 0.1, "2": 0.6, "4": 0.3}, "input": {"8": 1.0}}
    (found,) = beliefs(points_of([record_with({"shares": dict.fromkeys(LAYERS, both)}, 4.0)]))
    assert set(found.probabilities) == {"weight"}
    assert posterior_rows([found]) == []
    assert bits_png([found]).startswith(b"\x89PNG")


def test_the_first_seed_is_shown():
    found = beliefs(points_of([believed(seed=2, shift=0.2), believed(seed=1)]))
    assert [belief.record.seed for belief in found] == [1]


def test_pictures_depend_on_what_is_believed_and_on_nothing_else():
    few, more = ([believed(budget, shift) for budget in (3.0, 4.0)] for shift in (0.0, 0.1))
    pictures = [bands_png(beliefs(points_of(records)), "average_bits") for records in (few, more, few)]
    assert pictures[0] == pictures[2] != pictures[1]
    assert bits_png(beliefs(points_of(few))) == bits_png(beliefs(points_of(more)))  # equal probabilities
    many = beliefs(points_of([believed(2.0 + i / 10) for i in range(20)]))
    assert len(bits_png(many)) < 300_000


def test_reliability_and_growth_are_drawn():
    on, off = [(0.1, 0.1, 50), (0.9, 0.9, 50)], [(0.1, 0.4, 50), (0.9, 0.6, 50), (np.nan, np.nan, 0)]
    assert reliability_png({"a": on}) != reliability_png({"a": off})
    curve = [(1.0, 0.5, 0.4, 0.6), (2.0, 0.2, 0.1, 0.3)]
    assert growth_png({"a": curve}, "regret") != growth_png({"a": curve[:1]}, "regret")


@pytest.mark.parametrize("with_posterior", [True, False])
def test_a_report_has_them_where_there_are_any(tmp_path, with_posterior):
    run = create_run(tmp_path, "quick", "name: quick\n", {"a": 1}, ENVIRONMENT)
    run.save(believed() if with_posterior else make_record(flow="ptq", allocator="exact", budget=4.0))
    names = {path.name for path in write_report(run)}
    assert ({"probabilities.csv", "bits.png", "bands.png"} <= names) == with_posterior
    assert ("Posteriors" in (run.path / "report.html").read_text()) == with_posterior
