"""Bayesian Bits on CIFAR-10: accuracy and bit-operations of VGG-7.

Paper: Bayesian Bits: Unifying Quantization and Pruning, van Baalen et al. 2020, https://arxiv.org/abs/2005.07093,
  table 1.
Published: mu 0.01: 93.23 % at 0.51 % of the bit-operations of float, after 300 epochs (README of
  Qualcomm-AI-research/BayesianBits @fb04b6f; with mu 0.1 91.96 % at 0.29 %, which is not in the config).
Recipe: configs/cifar_vgg7_bayesian_bits.yaml, a schedule of 80 epochs after 100 of float training.
Run: not run; it needs a GPU.
Tolerance: 0.7 points, and 0.2 percentage points of the bit-operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paper_figures.figure import Figure, Record, Row, find, published_bars
from paper_figures.sweeps import run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

CONFIG = "cifar_vgg7_bayesian_bits.yaml"


def run() -> list[Record]:
    """A record of the float model and one of the quantized one."""
    return run_config(CONFIG)


def rows(records: Sequence[Record]) -> list[Row]:
    """Accuracy and bit-operations."""
    test, costs = (find(records, field, flow="qat") for field in ("test", "costs"))
    score = None if test is None else 100 * test["score"]
    bops = None if costs is None else 100 * costs["relative_bops"]
    return [Row("VGG-7, top-1", 93.23, score, 0.7), Row("VGG-7, % of float's bit-operations", 0.51, bops, 0.2)]


def draw(records: Sequence[Record]) -> Picture:
    """Bars of ours and of the published accuracy."""
    return published_bars(rows(records)[:1], "top-1 (%)", (85.0, 95.0))


FIGURE = Figure(
    title="Bayesian Bits on VGG-7",
    paper="Bayesian Bits (van Baalen et al. 2020), table 1",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
    device="gpu",
)
