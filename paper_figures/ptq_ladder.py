"""The ladder of post-training quantization: round to nearest, AdaRound, BRECQ, QDrop, on a network known to all.

Paper: AdaRound, Nagel et al. 2020, https://arxiv.org/abs/2004.10568; BRECQ, Li et al. 2021,
  https://arxiv.org/abs/2102.05426; QDrop, Wei et al. 2022, https://arxiv.org/abs/2203.05740; compared side by side in
  MQBench's table, https://arxiv.org/abs/2111.03759.
Published: ImageNet, ResNet-18, W2A4: AdaRound 62.31, BRECQ 63.56, QDrop 64.49, float 71.06 (ModelTC/MQBench @00f477d,
  Benchmark.rst). Another network and data set: what can agree is the order, hence the signs of the gaps.
Recipe: configs/cifar_resnet20_ladder.yaml, with its roundings and the three methods at W2A4 only: ResNet-20 with the
  published CIFAR-10 weights (91.73), first and last layer W8A8, per-channel weights, MSE ranges, 1,024 images, 1,000
  iterations, one seed. README has the other rows.
Run: CPU (x86-64, JAX 0.10.2), 9.4 CPU minutes, 13 of wall on two cores shared with other work.
Tolerance: the sign of each gap; 0.1 points for float, whose published value is of these weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paper_figures.figure import Figure, Record, Row, find
from paper_figures.sweeps import run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

CONFIG = "cifar_resnet20_ladder.yaml"
WIDTHS = ((8, 8), (4, 8), (4, 4), (3, 8), (2, 8), (2, 4))
METHODS = {"adaround": 62.31, "brecq": 63.56, "qdrop": 64.49}  # MQBench, ResNet-18, W2A4
NAMES = {"adaround": "AdaRound", "brecq": "BRECQ", "qdrop": "QDrop"}
FLOAT = 91.73


def run() -> list[Record]:
    """A record per trial."""
    trials: list[Record] = [{"flow": "float"}, *({"allocation": {"bits": list(bits)}} for bits in WIDTHS)]
    for name in METHODS:
        method = {"name": name, "options": {"iterations": 1000}}
        trials.append({"allocation": {"bits": [2, 4]}, "ptq": [method]})
    found = run_config(CONFIG, [f"sweep={json.dumps({'list': trials})}"])
    return [{**record, "method": _method(record)} for record in found]


def _method(record: Record) -> str:
    if record["flow"] == "float":
        return "float"
    return next((name for name in METHODS if name in record["methods"]), "rounding")


def _top1(records: Sequence[Record], method: str, bits: tuple[int, int] = (2, 4)) -> float | None:
    allocation = "float" if method == "float" else f"W{bits[0]}A{bits[1]}"
    test = find(records, "test", method=method, allocation=allocation)
    return None if test is None else 100 * test["score"]


def _gap(high: float | None, low: float | None) -> float | None:
    return None if high is None or low is None else high - low


def rows(records: Sequence[Record]) -> list[Row]:
    """Float against its published value, the signs of the gaps at W2A4, and every score of ours."""
    found = [Row("float, top-1", FLOAT, _top1(records, "float"), 0.1)]
    pairs = (("brecq", "adaround"), ("qdrop", "brecq"), ("qdrop", "adaround"))
    for high, low in pairs:
        ours = _gap(_top1(records, high), _top1(records, low))
        published = METHODS[high] - METHODS[low]
        found.append(Row(f"W2A4, {NAMES[high]} - {NAMES[low]}, points", published, ours, "sign"))
    for bits in WIDTHS:
        found.append(Row(f"W{bits[0]}A{bits[1]} rounding, top-1", None, _top1(records, "rounding", bits)))
    return found + [Row(f"W2A4 {NAMES[name]}, top-1", None, _top1(records, name)) for name in METHODS]


def draw(records: Sequence[Record]) -> Picture:
    """Rounding at every width, and the methods at W2A4 beside MQBench's."""
    from qresearch.report.figure import new_figure

    picture = new_figure(10.0, 4.2)
    rounding, methods = picture.subplots(1, 2)
    known = [(f"W{w}A{a}", value) for w, a in WIDTHS if (value := _top1(records, "rounding", (w, a))) is not None]
    bars = rounding.bar([name for name, _ in known], [value for _, value in known], color="#0072B2")
    rounding.bar_label(bars, fmt="%.2f", fontsize=8)
    rounding.axhline(_top1(records, "float") or FLOAT, color="#555555", linestyle="--", linewidth=1, label="float")
    rounding.set(ylabel="top-1 (%)", title="round to nearest, ResNet-20 on CIFAR-10", ylim=(0, 100))
    ours = {NAMES[name]: value for name in METHODS if (value := _top1(records, name)) is not None}
    bars = methods.bar([i - 0.2 for i in range(len(ours))], list(ours.values()), 0.38, color="#0072B2", label="ours")
    methods.bar_label(bars, fmt="%.2f", fontsize=8)
    label = "MQBench: ResNet-18 on ImageNet"
    published = methods.bar(
        [i + 0.2 for i in range(len(METHODS))], list(METHODS.values()), 0.38, color="#E69F00", label=label
    )
    methods.bar_label(published, fmt="%.2f", fontsize=8)
    methods.set_xticks(range(len(METHODS)), [NAMES[name] for name in METHODS])
    methods.set(title="W2A4", ylim=(40, 100))
    for axes in (rounding, methods):
        axes.grid(alpha=0.25, axis="y")
        axes.legend(fontsize=8, loc="upper right")
    return picture


FIGURE = Figure(
    title="Post-training quantization, from rounding to QDrop",
    paper="AdaRound, BRECQ, QDrop; order as in MQBench's table",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
)
