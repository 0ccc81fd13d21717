"""Costs of a device and costs from a file; what a model's layers store."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.cost import layer_counts
from qresearch.cost_table import read_cost_table
from qresearch.errors import ConfigError
from qresearch.latency import DEVICES, roofline
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule

# A convolution that computes, a dense layer that loads its weights, and a look-up.
LAYERS = layer_counts([9 * 256 * 256, 4096 * 4096, 10**6], [2312110080, 4096 * 4096, 0], inputs=[200704, 4096, 0])
WIDTHS = [(b, b) for b in (0, 2, 4, 8, 16, 32)]


@pytest.mark.parametrize("device", DEVICES)
def test_roofline_by_hand(device):
    """2·macs / peak for the convolution; its weights' bytes / bandwidth for the dense layer at batch 1."""
    chosen = DEVICES[device]
    table = roofline(device).table(LAYERS, [(8, 8)])[:, 0]
    assert table[0] == np.ceil(2 * 2312110080 / chosen.peaks[8])  # ps: 10^12 operations per second
    transferred = 4096 * 4096 + 2 * 4096  # bytes at 8 bits; the input is written and read
    assert table[1] == np.ceil(transferred * 1e3 / chosen.bandwidth)
    assert table[2] == 0
    assert roofline(device).of(LAYERS, [(8, 8)] * 3) == pytest.approx(table.sum() / 1e9)  # ms


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("device", DEVICES)
def test_roofline_falls_with_the_bits_and_grows_with_the_batch(device, batch):
    table = roofline(device, batch).table(LAYERS, WIDTHS)
    assert table.dtype == np.int64
    assert np.all(np.diff(table, axis=1) >= 0)
    assert np.all(table[:, 0] == 0)
    assert np.all(table[:2, 1:] > 0)
    assert np.all(table <= roofline(device, 2 * batch).table(LAYERS, WIDTHS))


def test_weights_are_read_once_a_batch():
    many, one = (roofline("t4", batch).table(LAYERS, [(8, 8)])[1, 0] for batch in (2, 1))
    assert many < 1.01 * one


def test_the_widest_operand_decides_the_arithmetic():
    compute = roofline("t4").table(LAYERS, [(4, 8), (8, 4), (8, 8), (3, 4), (4, 4), (16, 4)])[0]
    assert compute[0] == compute[1] == compute[2] == pytest.approx(2 * compute[4], abs=1)
    assert compute[3] == compute[4]
    assert compute[5] == pytest.approx(2 * compute[0], abs=1)


def test_an_unknown_device():
    with pytest.raises(ConfigError, match="unknown device 'h10'; did you mean 'h100'"):
        roofline("h10")


TABLE = """layer,weight_bits,input_bits,cost,comment
stem,8,8,0.125,
stem,4,8,0.1,measured twice
*,8,8,2,
*,4,8,1.5,
"""
TWO = layer_counts([1, 1], [1, 1], ["stem", "head"])


def test_a_table_from_a_file(tmp_path):
    path = tmp_path / "latency.csv"
    path.write_text(TABLE)
    cost = read_cost_table(path, "ms")
    assert cost.table(TWO, [(8, 8), (4, 8), (0, 8)]).tolist() == [[125, 100, 0], [2000, 1500, 0]]
    assert cost.of(TWO, [(4, 8), (8, 8)]) == 2.1  # exact: decimals become integers
    assert cost.unit == "ms"
    with pytest.raises(ConfigError, match=r"latency.csv: has no row for layer 'stem' at W2A8; add it"):
        cost.table(TWO, [(2, 8)])
    with pytest.raises(ConfigError, match=r"no row for layer 'stem' at W4.5A8"):
        cost.of(TWO, [(4.5, 8), (8, 8)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer,bits,cost\n", "has no column 'weight_bits'; expected layer,weight_bits,input_bits,cost"),
        ("", "has no column 'layer'"),
        (TABLE + "stem,8,8,1,\n", "line 6: layer 'stem' at W8A8 is there twice"),
        (
            TABLE + "head,8,8,-1,\n",
            "line 6: expected a layer, two whole numbers of bits and a cost >= 0, got head,8,8,-1",
        ),
        (TABLE + "head,8,8,fast,\n", "line 6: expected a layer"),
        (TABLE + "head,8,8,nan,\n", "line 6: expected a layer"),
        (TABLE + "head,8.5,8,1,\n", "line 6: expected a layer"),
        (TABLE + "head,33,8,1,\n", "line 6: expected a layer"),
        (TABLE + "head\n", "line 6: expected a layer"),
        (TABLE + "head,8,8,1e-12,\n", "more than 9 digits"),
    ],
)
def test_a_file_of_another_form(tmp_path, text, message):
    path = tmp_path / "latency.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_cost_table(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.csv: cannot be read as a table of costs"):
        read_cost_table(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("weight", "input", "stored"),
    [
        (SiteRule(granularity="per_channel"), SiteRule(), (5, 0, 1, 0)),
        (SiteRule(), SiteRule(symmetric=False), (1, 0, 1, 1)),
        (
            SiteRule(granularity="per_group", group_size=4, symmetric=False),
            SiteRule(granularity="per_channel"),
            (10, 10, 8, 0),
        ),
        (SiteRule("dorefa"), None, (1, 0, 0, 0)),
    ],
)
def test_what_a_layer_stores(weight, input, stored):
    params = {"w": jnp.ones((8, 5))}
    x = jax.ShapeDtypeStruct((3, 8), jnp.float32)
    rule = Rule(weight=weight, input=input and SiteRule(**{**input.__dict__, "signed": True}))
    counts = quantize_model(lambda p, x: x @ p["w"], params, x, (rule,)).counts
    assert (counts.scales[0], counts.zero_points[0], counts.input_scales[0], counts.input_zero_points[0]) == stored
    assert (counts.elements[0], counts.macs[0], counts.inputs[0]) == (40, 40, 8)
