"""Attention products and embedding look-ups through a sweep: rules of a config, costs, allocators, records."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from small_sweep import stored, sweep, write_small
from tiny_tasks import TINY

from qresearch.data import DATASETS
from qresearch.models import MODELS
from qresearch.models.model import from_linen

TEXT = """\
name: products
task: language_modelling
data: {name: tiny_text}
model: {name: tiny_gpt}
float: {epochs: 2, batch_size: 32, learning_rate: 1e-2}
quantize:
  weight: {quantizer: minmax, granularity: per_channel, range: minmax}
  input: {quantizer: minmax, granularity: per_tensor, range: minmax}
  menu: [[2, 2], [4, 4], [8, 8]]
  rules:
    - {pattern: "product:*"}
    - {pattern: "embedding:*"}
calibration: {examples: 32}
sensitivity: {examples: 50}
evaluate: {batch_size: 50}
qat: {epochs: 1, batch_size: 32, learning_rate: 1e-3}
flow: ptq
allocation: {bits: [8, 8]}
sweep:
  list:
    - {flow: float}
    - {}
    - {allocation: {bits: [2, 2]}}
    - {allocation: {allocator: exact, budget: 4}}
    - {allocation: {allocator: exact, cost: bops, budget: 0.2}}
    - {flow: qat, allocation: {bits: [4, 4]}}
"""
PRODUCTS = ["product:attention", "product:attention#2"]


class TinyGPT(nn.Module):
    """Attention between an embedding and logits tied to it."""

    classes: int

    @nn.compact
    def __call__(self, ids, train):
        tokens = nn.Embed(self.classes, 8, name="tokens")
        mask = nn.make_causal_mask(ids)
        x = tokens(ids)
        return tokens.attend(x + nn.MultiHeadDotProductAttention(2, name="attention")(x, mask=mask))


def find(records, flow, bits=None):
    """The record of the float model, or of the trial with this width for all."""
    uniform = None if bits is None else [bits, bits]
    return next(
        record
        for record in records
        if record["flow"] == flow and (bits is None or record["config"]["allocation"]["bits"] == uniform)
    )


def tiny_gpt(classes):
    return from_linen(TinyGPT(classes), jax.ShapeDtypeStruct((16,), np.int32))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A function from settings to the records of a finished sweep, by their labels."""

    @functools.cache
    def run(*values):
        folder = tmp_path_factory.mktemp("products")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(DATASETS, "tiny_text", TINY["language_modelling"].data)
            patch.setitem(MODELS, "tiny_gpt", tiny_gpt)
            assert sweep(write_small(folder, TEXT), folder / "out", *values) == 0
        return list(stored(folder / "out").values())

    return run


@pytest.mark.slow
def test_the_rules_make_layers_of_them(run_of):
    records = run_of()
    assert {record["status"] for record in records} == {"done"}
    for record in records:
        layers = record["allocation"]["layers"]
        assert layers[0] == "embedding:tokens/embedding"
        assert [name for name in layers if name.startswith("product:")] == PRODUCTS
        assert layers[-1] == "tokens/embedding"


@pytest.mark.slow
def test_eight_bits_lose_less_than_two(run_of):
    records = run_of()
    losses = [find(records, *which)["metrics"]["test"]["loss"] for which in (("float",), ("ptq", 8), ("ptq", 2))]
    assert abs(losses[1] - losses[0]) < 0.05 < abs(losses[2] - losses[0])


@pytest.mark.slow
def test_products_cost_bit_operations_and_no_storage_and_look_ups_the_reverse(run_of):
    """time 16, width 8: both products take 16 * 16 * 8 macs; the table stores 8 * 8 weights, as the logits do."""
    asked = find(run_of(), "ptq", 8)["costs"]
    usual = find(run_of("quantize.rules=[]", "sweep=null", "float.epochs=0"), "ptq", 8)["costs"]
    assert asked["bops"] - usual["bops"] == pytest.approx(2 * 16 * 16 * 8 * 64 / 1e6)
    assert asked["size"] - usual["size"] == pytest.approx(8 * 8 * 8 / 8000)
    assert asked["average_bits"] == usual["average_bits"] == 8


def test_products_alone_have_costs(run_of):
    """No weights: average_bits is 0, not a division by it."""
    only = 'quantize.rules=[{pattern: "product:*"}, {pattern: "*", weight: float, input: float}]'
    record = find(run_of(only, "sweep=null", "float.epochs=0"), "ptq", 8)
    assert record["allocation"]["layers"] == PRODUCTS
    assert record["costs"]["average_bits"] == 0
    assert record["costs"]["size"] == pytest.approx(len(PRODUCTS) * 2 * 32 / 8000)  # a scale for each operand
    assert record["costs"]["relative_bops"] == pytest.approx(1 / 16)


def test_a_look_up_alone_costs_no_bit_operations(run_of):
    only = 'quantize.rules=[{pattern: "embedding:*"}, {pattern: "*", weight: float, input: float}]'
    record = find(run_of(only, "sweep=null", "float.epochs=0"), "ptq", 8)
    assert record["allocation"]["bits"] == [[8, 32]]
    assert (record["costs"]["bops"], record["costs"]["relative_bops"], record["costs"]["average_bits"]) == (0, 0, 8)
