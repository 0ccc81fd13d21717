"""Allocations as plain JSON and CSV: what they say of a layer is what the layer does."""

from __future__ import annotations

import csv
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from trained import uniform

from qresearch.calibration import calibrate, select
from qresearch.export.allocation_files import FORMAT, SITE_FIELDS, allocation_csv, allocation_json, layer_rows
from qresearch.frozen import freeze
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule

BITS = np.asarray([[8, 4], [3, 32], [0, 8]], np.float32)


def frozen_of(trained, rule, bits):
    x = jnp.asarray(trained.data.prepare(trained.data.train.inputs[:16]))
    model = quantize_model(trained.model.apply, trained.variables, x, (rule,))
    qparams = select(calibrate(model, trained.variables, x, [1, 3, 4, 8]), jnp.asarray(bits))
    return freeze(model, trained.variables, qparams, bits)


@pytest.fixture(scope="module")
def mixed(trained_digits):
    """W8A4, W3 with inputs in float, and a pruned layer; per channel and affine."""
    weight = SiteRule(granularity="per_channel", range="minmax")
    return frozen_of(trained_digits, Rule("*", weight, SiteRule(symmetric=False, range="minmax")), BITS)


def test_what_is_said_of_every_layer(mixed):
    content = json.loads(allocation_json(mixed, {"trial": "abc"}))
    assert (content["format"], content["trial"]) == (FORMAT, "abc")
    first, second, third = content["layers"]
    assert [layer["layer"] for layer in content["layers"]] == [layer.name for layer in mixed.layers]
    assert first["parameter"] == "params/linear1/kernel"
    assert (first["kind"], first["weights"], first["macs"]) == ("dot_general", 8192, 8192)
    assert [layer["runs"] for layer in content["layers"]] == ["integer", "weight_only", "simulated"]
    expected = (8, "minmax", "per_channel", None, True, True, [1, 128], True)
    assert first["weight"] == dict(zip(SITE_FIELDS, expected))
    assert first["input"] == dict(zip(SITE_FIELDS, (4, "minmax", "per_tensor", None, False, False, [1, 1], True)))
    assert second["input"] is None
    assert second["weight"]["bits"] == 3
    assert third["weight"]["bits"] == 0


GROUPS, TOKENS = SiteRule(granularity="per_group", group_size=32), SiteRule("dynamic", "per_token")
SAID = [
    (Rule("*", GROUPS, None), (4, 32), "weight", {"group_size": 32, "scale_shape": [2, 1, 128]}),
    (Rule("*", SiteRule(), TOKENS), (8, 8), "input", {"static": False, "signed": False}),
    (Rule("*", SiteRule(), SiteRule("dynamic", signed=True)), (8, 8), "input", {"static": False, "signed": True}),
    (Rule("*", SiteRule("ternary"), None), (8, 32), "weight", {"bits": 2, "method": "ternary"}),
    (Rule("*", SiteRule("nf4", "per_channel"), None), (8, 32), "weight", {"signed": False}),
]


@pytest.mark.parametrize(("rule", "bits", "operand", "said"), SAID, ids=range(len(SAID)))
def test_granularities_signs_and_methods_with_a_width_of_their_own(trained_digits, rule, bits, operand, said):
    row = next(layer_rows(frozen_of(trained_digits, rule, uniform(*bits))))
    assert {name: row[operand][name] for name in said} == said


def test_the_csv_holds_the_same(mixed):
    rows = list(csv.DictReader(io.StringIO(allocation_csv(mixed))))
    assert len(rows) == 3
    for row, layer in zip(rows, layer_rows(mixed)):
        assert row["layer"] == layer["layer"]
        for operand in ("weight", "input"):
            site = layer[operand]
            assert row[f"{operand}_bits"] == str(32 if site is None else site["bits"])
            for name in SITE_FIELDS[1:]:
                value = None if site is None else site[name]
                shown = "x".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
                assert row[f"{operand}_{name}"] == shown
