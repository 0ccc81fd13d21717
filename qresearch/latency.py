"""Roofline latency: the time that a layer needs on a named device, from its bytes and its operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from qresearch.cost import Cost, LayerCounts
from qresearch.errors import ConfigError, did_you_mean
from qresearch.registry import Registry


class Device(NamedTuple):
    """bandwidth: of the memory, in GB/s. peaks: dense operations in 10^12 per second (a multiply-accumulate is two), by
    the widest operand in bits that they take, ascending up to 32.
    """

    bandwidth: float
    peaks: Mapping[int, float]
    source: str

    @property
    def describe(self) -> str:
        """One line for users."""
        peaks = ", ".join(f"{peak:g} at {width} bits" for width, peak in self.peaks.items())
        return f"{self.bandwidth:g} GB/s; 10^12 operations/s: {peaks} ({self.source})"


DEVICES: Registry[Device] = Registry(
    "devices",
    {
        # The peaks of 8 and 4 bits are of tensor cores in integers, that of 16 of tensor cores in half precision.
        "t4": Device(320.0, {4: 260.0, 8: 130.0, 16: 65.0, 32: 8.1}, "NVIDIA T4 data sheet, 2019"),
        "a100": Device(1555.0, {4: 1248.0, 8: 624.0, 16: 312.0, 32: 19.5}, "NVIDIA A100 40GB data sheet, 2020"),
        "h100": Device(3350.0, {8: 1979.0, 16: 989.5, 32: 67.0}, "NVIDIA H100 SXM data sheet, 2023"),
        "h200": Device(4800.0, {8: 1979.0, 16: 989.5, 32: 67.0}, "NVIDIA H200 SXM data sheet, 2024"),
    },
)
PICOSECONDS = 1e9  # in a millisecond


def roofline(device: str, batch: int = 1) -> Cost:
    """max(bytes / bandwidth, operations / peak) of every layer for a batch of examples, in ms; layers add up.

    operations = 2 macs batch, at the peak of the narrowest arithmetic that takes both operands. bytes: weights are read
    once a batch at their width, inputs are written once and read once at theirs. Williams et al., Roofline, 2009,
    https://doi.org/10.1145/1498765.1498785. A bound, not a measurement: it knows no launch overhead, no cache and no
    low utilisation of small layers; for measured times give a table (``read_cost_table``). Layers without
    multiply-accumulates (look-ups) and pruned ones take no time.
    """
    if device not in DEVICES:
        raise ConfigError(f"unknown device '{device}'{did_you_mean(device, DEVICES)}")
    chosen = DEVICES[device]

    def layer_cost(layers: LayerCounts, weight_bits: np.ndarray, input_bits: np.ndarray) -> np.ndarray:
        widest = np.maximum(weight_bits, input_bits)
        peak = np.select([widest <= width for width in chosen.peaks], list(chosen.peaks.values()))
        arithmetic = 2.0 * layers.macs * batch / peak  # 1e12 operations a second are one per picosecond
        transferred = (layers.elements * weight_bits + 2.0 * layers.inputs * batch * input_bits) / 8
        runs = (layers.macs > 0) & (weight_bits > 0) & (input_bits > 0)
        # Whole picoseconds, rounded up: a budget must never admit what takes longer.
        return np.where(runs, np.ceil(np.maximum(arithmetic, transferred * 1e3 / chosen.bandwidth)), 0).astype(np.int64)

    examples = "one example" if batch == 1 else f"{batch} examples"
    return Cost(layer_cost, lambda layers: PICOSECONDS, "ms", f"roofline latency of {examples} on {device}")
