"""The keys that a search needs: menus in short, tied layers, limits, costs of one's own."""

from __future__ import annotations

import pytest

from qresearch.config import config_hash, expand, from_mapping
from qresearch.errors import ConfigError

BASE = {"name": "a", "flow": "ptq"}
BUDGET = {"allocator": "exact", "budget": 4}


def run(**values):
    return expand(from_mapping(BASE | {"allocation": BUDGET} | values))[0]


@pytest.mark.parametrize(
    ("menu", "pairs"),
    [
        ({"both": [4, 8]}, ((4, 4), (8, 8))),
        ({"weight": [2, 4], "input": [8]}, ((2, 8), (4, 8))),
        ({"weight": [0, 2], "input": [4, 8]}, ((0, 4), (0, 8), (2, 4), (2, 8))),
        ([[4, 8], [8, 8]], ((4, 8), (8, 8))),
    ],
)
def test_menus_in_short(menu, pairs):
    config = run(quantize={"menu": menu})
    assert config.quantize.menu == pairs
    assert config_hash(config) == config_hash(run(quantize={"menu": [list(pair) for pair in pairs]}))
    assert run(quantize={"rules": [{"pattern": "a", "menu": menu}]}).quantize.rules[0].menu == pairs


def test_the_widest_menu_of_the_field():
    widths = [0, 2, 3, 4, 5, 6, 8, 16]
    assert len(run(quantize={"menu": {"weight": widths, "input": widths}}).quantize.menu) == 64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantize": {"menu": {"weight": [4]}}}, "quantize.menu: expected a list of pairs"),
        ({"quantize": {"menu": {"both": [4], "input": [8]}}}, "quantize.menu: expected a list of pairs"),
        ({"quantize": {"menu": {"both": 4}}}, "under 'weight' and 'input', or under 'both'"),
        ({"quantize": {"menu": {"both": [4, 4]}}}, "a list of one or more different pairs"),
        ({"quantize": {"menu": {"both": [64]}}}, "whole numbers from 0 to 32"),
        ({"quantize": {"tied": "block*"}}, "quantize.tied: expected a list of patterns, or of lists of patterns"),
        ({"quantize": {"tied": [[1]]}}, "quantize.tied: expected a list of patterns"),
        ({"allocation": BUDGET | {"limits": {"size": 0}}}, "expected a mapping from costs to numbers > 0"),
        ({"allocation": BUDGET | {"limits": [3]}}, "allocation.limits: expected a mapping from costs to numbers > 0"),
        ({"allocation": BUDGET | {"limits": {"average_bits": 3}}}, "'average_bits' is the cost of the budget already"),
        ({"allocation": {"bits": [4, 4], "limits": {"size": 3}}}, "allocation.limits: give a 'budget' too"),
        ({"costs": [{"name": "latency"}]}, "give either 'device' or 'csv'"),
        ({"costs": [{"name": "latency", "device": "t4", "csv": "a.csv"}]}, "give either 'device' or 'csv'"),
        ({"costs": [{"device": "t4"}]}, "costs.0.name: missing"),
        ({"costs": [{"name": "latency", "device": "t4", "bach": 8}]}, "unknown key; did you mean 'batch'?"),
    ],
)
def test_what_is_wrong_with_them(values, message):
    with pytest.raises(ConfigError, match=message):
        run(**values)


def test_tied_layers_and_limits():
    config = run(quantize={"tied": ["block{}/*", ["a", "b"]]}, allocation=BUDGET | {"limits": {"size": 9, "bops": 2}})
    assert config.quantize.tied == (("block{}/*",), ("a", "b"))
    assert config.allocation.limits == (("bops", 2.0), ("size", 9.0))


KNOWN = {"allocation.cost": ("size", "bops"), "costs.device": ("t4",)}


def expanded(**values):
    return expand(from_mapping(BASE | {"allocation": BUDGET | values.pop("allocation", {})} | values), KNOWN)


def test_a_cost_of_ones_own_has_a_name():
    own = [{"name": "latency", "device": "t4"}]
    assert expanded(costs=own, allocation={"cost": "latency"})[0].allocation.cost == "latency"
    with pytest.raises(ConfigError, match=r"allocation.cost: unknown name .latancy.; did you mean 'latency'\?"):
        expanded(costs=own, allocation={"cost": "latancy"})
    with pytest.raises(ConfigError, match='unknown name "latency"'):
        expanded(allocation={"cost": "latency"})
    with pytest.raises(ConfigError, match=r'costs\.0\.device: unknown name "t5"'):
        expanded(costs=[{"name": "latency", "device": "t5"}], allocation={"cost": "size"})
