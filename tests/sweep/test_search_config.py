"""What a config says about a search, seen to be kept: tied layers, limits, costs of one's own, menus in short."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from small_sweep import outcome_of, settings, stored, write_small

import qresearch.sweep.choose
from qresearch.cli import main

LATENCY = "layer,weight_bits,input_bits,cost\n" + "".join(
    f"{layer},{bits},{bits},{price}\n"
    for layer, unit in (("linear1/kernel", 3), ("linear2/kernel", 2), ("linear3/kernel", 0.25))
    for bits, price in ((2, unit), (4, 1.5 * unit), (8, 2 * unit))
)
COSTS = [{"name": "roofline", "device": "t4", "batch": 64}, {"name": "measured", "csv": "CSV", "unit": "us"}]
TRIALS = [
    {"allocation.cost": "measured", "allocation.budget": 8.5, "allocation.limits": {"average_bits": 6}},
    {"allocation.cost": "average_bits", "allocation.budget": 6, "allocation.limits": {"measured": 8.5, "bops": 0.5}},
    {"allocation.cost": "roofline", "allocation.budget": 0.0001},
]


def run(folder, *values, trials=TRIALS, command="search"):
    (folder / "latency.csv").write_text(LATENCY)
    config = folder / "small.yaml" if (folder / "small.yaml").exists() else write_small(folder)
    fixed = ["quantize.menu={both: [2, 4, 8]}", "quantize.tied=[[linear1/*, linear2/*]]", "float.epochs=1"]
    fixed += ["sensitivity.examples=60", "sensitivity.joint=0"]
    fixed += [f"costs={json.dumps(COSTS).replace('CSV', str(folder / 'latency.csv'))}", "report.cost=measured"]
    listed = [{"flow": "ptq", "allocation.bits": None, "allocation.allocator": "exact", **trial} for trial in trials]
    fixed += [f"sweep={json.dumps({'list': listed})}", f"output={folder / 'out'}"]
    return main([command, str(config), *settings(*fixed, *values)])


def test_ties_limits_and_own_costs_are_kept(tmp_path):
    assert run(tmp_path) == 0
    records = list(stored(tmp_path / "out").values())
    assert len(records) == len(TRIALS)
    for record in records:
        bits = np.array(record["allocation"]["bits"])
        np.testing.assert_array_equal(bits[0], bits[1])  # tied
        np.testing.assert_array_equal(bits[:, 0], bits[:, 1])  # a menu of equal widths
        for name, limit in record["allocation"]["budget"].items():
            assert record["costs"][name] <= limit * (1 + 1e-9)
        factor = {2: 1, 4: 1.5, 8: 2}
        by_hand = sum(unit * factor[int(w)] for unit, w in zip((3, 2, 0.25), bits[:, 0]))
        assert record["costs"]["measured"] == pytest.approx(by_hand)
        assert record["costs"]["roofline"] > 0
    chosen = {tuple(sorted(record["allocation"]["budget"])): record for record in records}
    # 8.5 us admits W4A4 for the tied pair (7.5 us), not W8A8 (10 us).
    assert chosen["average_bits", "measured"]["allocation"]["bits"][:2] == [[4, 4], [4, 4]]
    assert len(chosen["average_bits", "bops", "measured"]["allocation"]["budget"]) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["quantize.tied=[[linear9/*]]"], "tied layers: 'linear9/*' matches no layer"),
        (["quantize.tied=[[linear1/*], [linear1/*, linear2/*]]"], "tied layers: linear1/* ties nothing"),
        (
            ["costs=[{name: size, device: t4}, {name: measured, device: t4}]"],
            "costs: 'size' is there already; choose another name",
        ),
        (["costs=[{name: measured, csv: nowhere.csv}]"], "nowhere.csv: cannot be read as a table of costs"),
        (["quantize.menu={both: [2, 3]}"], "latency.csv: has no row for layer 'linear1/kernel' at W3A3; add it"),
        (["allocation.budget=5"], "allocation.budget: 5 us (measured) is below the cheapest allocation of the menus"),
        (["allocation.limits={bops: 0.01}"], "allocation.limits.bops: 0.01 Mbops (bops) is below the cheapest"),
        (["allocation.limits={bobs: 1}"], "allocation.limits: cost 'bobs' is not known; did you mean 'bops'?"),
        (
            ["allocation.allocator=dq", "allocation.limits={bops: 1}"],
            "allocation.limits: search 'dq' trains for one budget",
        ),
        (
            ["allocation.allocator=dq", "allocation.refine=1"],
            "allocation.refine: search 'dq' trains for one budget, and nothing refines it; leave it out",
        ),
        (
            ["allocation.allocator=dq", "search.batch_size=99999"],
            "search.batch_size 99999 exceeds the",
        ),
        (
            ["allocation.budget=null", "allocation.bits=[4,4]", "allocation.limits={}"],
            "no trial has a budget to search",
        ),
    ],
)
def test_mistakes_are_one_line_and_nothing_starts(tmp_path, capsys, values, message):
    status = run(
        tmp_path, "allocation.limits={}", *values, trials=[{"allocation.cost": "measured", "allocation.budget": 9}]
    )
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list((tmp_path / "out").glob("*/trials/*"))


def test_a_layer_in_two_groups_is_named(tmp_path, capsys):
    ties = "quantize.tied=[[linear1/*, linear2/*], [linear2/*, linear3/*]]"
    assert run(tmp_path, ties) == 2
    assert re.search(r"error: .*layer 'linear2/kernel' is in more than one group", capsys.readouterr().err)


def test_what_was_found_is_not_searched_for_again(tmp_path, capsys, monkeypatch):
    trials = [{"allocation.cost": "measured", "allocation.budget": 9}, {"allocation.budget": 4}]
    assert run(tmp_path, trials=trials) == 0
    before = stored(tmp_path / "out")
    for path in (tmp_path / "out").glob("*/trials/*/result.json"):
        path.unlink()  # as if the run had been stopped before the evaluation
    kept = sorted((tmp_path / "out").glob("*/searches/*.json"))
    assert len(kept) == 2
    kept[1].write_text(kept[1].read_text()[:40])
    called = []
    exact = qresearch.sweep.choose.ALLOCATORS["exact"]

    def counted(*arguments, **options):
        if len(arguments[1].loss) > 1:  # the check of options asks about one layer
            called.append(arguments)
        return exact(*arguments, **options)

    monkeypatch.setitem(qresearch.sweep.choose.ALLOCATORS, "exact", counted)
    assert run(tmp_path, trials=trials) == 0
    assert len(called) == 1
    assert f"{kept[1].name}: is damaged (sha256); the search is run again" in capsys.readouterr().out.replace("\n", "")
    after = stored(tmp_path / "out")
    assert {label: outcome_of(record) for label, record in after.items()} == {
        label: outcome_of(record) for label, record in before.items()
    }
