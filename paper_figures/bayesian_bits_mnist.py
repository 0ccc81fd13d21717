"""Bayesian Bits on MNIST: accuracy and bit-operations of LeNet-5 when every width and channel has a gate.

Paper: Bayesian Bits: Unifying Quantization and Pruning, van Baalen et al. 2020, https://arxiv.org/abs/2005.07093,
  table 1.
Published: 99.30 % at 0.36 % of the bit-operations of float after 100 epochs, lambda 0.1 (README of
  Qualcomm-AI-research/BayesianBits @fb04b6f).
Recipe: configs/mnist_bayesian_bits.yaml with one epoch less at the end, seed 0: three epochs of float training, five of
  search with gates at ten times the paper's rate, and one with fixed gates. The config's header has three seeds, and
  the full recipe, for a GPU.
Run: CPU (x86-64, JAX 0.10.2), 15.5 CPU minutes, 14.6 of wall on two cores shared with other work.
Tolerance: 0.15 points, and 0.10 percentage points of the bit-operations (of the full recipe; ours is shorter).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paper_figures.figure import Figure, Record, Row, find
from paper_figures.sweeps import run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

CONFIG = "mnist_bayesian_bits.yaml"
TOP1, BOPS = 99.30, 0.36


def run() -> list[Record]:
    """A record of the float model and one of the quantized one."""
    return run_config(CONFIG, ["qat.epochs=1"])


def _percent(records: Sequence[Record], flow: str, field: str, name: str) -> float | None:
    values = find(records, field, flow=flow)
    return None if values is None else 100 * values[name]


def rows(records: Sequence[Record]) -> list[Row]:
    """Accuracy, bit-operations, and the accuracy of float."""
    return [
        Row("LeNet-5, top-1", TOP1, _percent(records, "qat", "test", "score"), 0.15),
        Row("LeNet-5, % of float's bit-operations", BOPS, _percent(records, "qat", "costs", "relative_bops"), 0.10),
        Row("LeNet-5 float, top-1", None, _percent(records, "float", "test", "score")),
    ]


def draw(records: Sequence[Record]) -> Picture:
    """Accuracy against bit-operations."""
    from qresearch.report.figure import new_figure

    picture = new_figure(6.4, 4.4)
    axes = picture.subplots()
    for record in records:
        x, y = 100 * record["costs"]["relative_bops"], 100 * record["test"]["score"]
        if record["flow"] == "float":
            axes.axhline(y, color="#555555", linestyle="--", linewidth=1, label=f"our float, {y:.2f}")
        else:
            axes.plot(x, y, "o", color="#0072B2", label=f"ours, {y:.2f} at {x:.3f} %")
    label = f"published, {TOP1:.2f} at {BOPS:.2f} %"
    axes.plot(BOPS, TOP1, "o", color="#D55E00", markersize=10, fillstyle="none", label=label)
    axes.errorbar(BOPS, TOP1, 0.15, 0.10, color="#D55E00", linewidth=1, capsize=3, label="tolerance")
    axes.set(xlabel="bit-operations (% of float)", ylabel="test top-1 (%)", title="LeNet-5 on MNIST")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return picture


FIGURE = Figure(
    title="Bayesian Bits on MNIST",
    paper="Bayesian Bits (van Baalen et al. 2020), table 1",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
)
