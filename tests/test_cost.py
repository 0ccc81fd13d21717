from __future__ import annotations

import numpy as np
import pytest

from qresearch.cost import COSTS, cost_named, layer_counts
from qresearch.errors import ConfigError

ELEMENTS = np.array([100, 2000, 0])  # the third layer is a product of activations
MACS = np.array([5000, 3000, 700])
LAYERS = layer_counts(ELEMENTS, MACS)
OPTIONS = np.array([(8, 8), (4, 8), (2, 4), (0, 8), (8, 0), (32, 32)])


@pytest.fixture(params=COSTS)
def name(request):
    return request.param


def test_tables_by_hand():
    size = [[800, 400, 200, 0, 800, 3200], [16000, 8000, 4000, 0, 16000, 64000], [0] * 6]
    per_mac = [64, 32, 8, 0, 0, 1024]
    assert COSTS["size"].table(LAYERS, OPTIONS).tolist() == size
    assert COSTS["average_bits"].table(LAYERS, OPTIONS).tolist() == size
    assert COSTS["bops"].table(LAYERS, OPTIONS).tolist() == [[m * b for b in per_mac] for m in MACS]


def test_units_by_hand():
    """W8A8, W4A8 and W8A8: 100·8 + 2000·4 bits; 5000·64 + 3000·32 + 700·64 bit-operations."""
    bits = [(8, 8), (4, 8), (8, 8)]
    assert COSTS["size"].of(LAYERS, bits) == pytest.approx(8800 / 8000)  # kB
    assert COSTS["average_bits"].of(LAYERS, bits) == pytest.approx(8800 / 2100)
    assert COSTS["bops"].of(LAYERS, bits) == pytest.approx(0.4608)  # Mbops
    units = {"size": "kB", "average_bits": "bits", "bops": "Mbops", "relative_bops": "of float"}
    assert {name: COSTS[name].unit for name in units} == units


def test_tables_are_exact_integers(name):
    """ResNet-50 has 4e9 macs; a language model of 1e12 macs at 32 x 32 bits must not round or overflow."""
    table = COSTS[name].table(layer_counts([10**12 + 1], [10**12 + 1]), [(31, 31)])
    assert table.dtype == np.int64
    assert table[0, 0] in ((10**12 + 1) * 31, (10**12 + 1) * 31**2)


def test_a_sum_over_the_table_is_the_cost_of_the_allocation(name):
    random = np.random.default_rng(0)
    table = COSTS[name].table(LAYERS, OPTIONS)
    choice = random.integers(0, len(OPTIONS), (20, 3))
    total = table[np.arange(3), choice].sum(axis=-1) / COSTS[name].total(LAYERS)
    np.testing.assert_allclose(COSTS[name].of(LAYERS, OPTIONS[choice]), total, rtol=1e-12)


def test_more_bits_never_cost_less(name):
    table = COSTS[name].table(LAYERS, [(b, b) for b in range(33)])
    assert np.all(np.diff(table, axis=1) >= 0)
    assert np.all(table[:, 0] == 0)


def test_float_is_charged_as_32_bits(name):
    wide = COSTS[name].table(LAYERS, [(32, 32), (64, 100)])
    np.testing.assert_array_equal(wide[:, 0], wide[:, 1])


def test_every_weight_counts_once_in_the_average():
    """The mean over layers would be 5; here 2000 of 2100 weights have 2 bits."""
    bits = [(8, 8), (2, 8), (32, 8)]
    assert COSTS["average_bits"].of(LAYERS, bits) == pytest.approx((800 + 4000) / 2100)


@pytest.mark.parametrize(("bits", "percent"), [(8, 6.25), (4, 1.5625), (2, 0.390625), (32, 100.0)])
def test_relative_bops_of_uniform_widths(bits, percent):
    """The numbers of Bayesian Bits' tables, for any network."""
    assert 100 * COSTS["relative_bops"].of(LAYERS, np.full((3, 2), bits)) == percent


def test_relative_bops_weighs_layers_by_macs():
    layers = layer_counts([1, 1], [300, 100])
    assert COSTS["relative_bops"].of(layers, [(32, 32), (0, 32)]) == 0.75
    assert COSTS["relative_bops"].of(layers, np.ones((5, 4, 2, 2))).shape == (5, 4)


def test_size_has_scales_and_zero_points_in_it():
    """4 channels with a scale and a 4-bit zero-point each, and an input with one scale: 400 + 4·(32 + 4) + 32 bits."""
    layers = layer_counts([100], [1], scales=[4], zero_points=[4], input_scales=[1])
    size = COSTS["size"].table(layers, [(4, 8), (0, 8), (32, 8), (4, 32), (0, 0), (32, 32)])[0]
    assert size.tolist() == [400 + 144 + 32, 32, 3200 + 32, 400 + 144, 0, 3200]
    assert COSTS["average_bits"].table(layers, [(4, 8)])[0, 0] == 400


def test_fractional_widths_are_charged_as_they_are():
    assert COSTS["average_bits"].of(layer_counts([10, 30], [1, 1]), [(2.5, 8), (4.5, 8)]) == 4.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost_named("bop"), "cost 'bop' is not known; did you mean 'bops'"),
        (lambda: COSTS["bops"].of(LAYERS, np.ones((2, 2))), "bits of 2 layers for a model of 3 layers"),
        (lambda: layer_counts(ELEMENTS, MACS[:2]), r"numbers of layers: \[2, 3\]"),
        (lambda: layer_counts(ELEMENTS, MACS, ["a"]), r"numbers of layers: \[3\]"),
        (lambda: COSTS["size"].of(LAYERS, -np.ones((3, 2))), "non-negative"),
        (lambda: COSTS["size"].of(LAYERS, np.full((3, 2), np.nan)), "non-negative"),
        (lambda: COSTS["size"].table(LAYERS, [8, 8]), "pairs, got shape"),
        (lambda: COSTS["size"].table(LAYERS, [(2.5, 8)]), "whole bits"),
        (lambda: layer_counts([1.5], [1]), "elements must be one non-negative whole number"),
        (lambda: layer_counts([1], [-1]), "macs must be"),
        (lambda: layer_counts([1], [1], scales=[0.5]), "scales must be"),
    ],
)
def test_what_has_no_cost_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
