"""What INT8 and INT4 cost on three tasks: images, text and detection.

Paper: our own; models and methods as the configs name them.
Published: nothing but the float score of the ResNet-20 weights, 91.73 (pytorch_resnet_cifar10).
Recipe: configs/cifar_resnet20_ptq.yaml, configs/digit_detector.yaml and configs/gpt_shakespeare.yaml, of the last the
  trials float, W8A8, W4A4 and W4A4 after a Hadamard rotation, with two epochs of float training in place of seven,
  for the time; one seed. Drops are in hundredths of the score (accuracy or mAP points; 0.01 of bits per character).
Run: CPU (x86-64, JAX 0.10.2), 9.5 minutes on two cores, the sum of two runs: the images and scenes, then the text.
Tolerance: 0.1 points for the float ResNet-20.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paper_figures.figure import Figure, Record, Row
from paper_figures.sweeps import run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

GPT_TRIALS = (
    {"flow": "float"},
    {"allocation": {"bits": [8, 8]}},
    {"allocation": {"bits": [4, 4]}},
    {"allocation": {"bits": [4, 4]}, "ptq": ["hadamard"]},
)
TASKS = {
    "classification": "ResNet-20, CIFAR-10, top-1",
    "detection": "detector, digit scenes, mAP@0.5",
    "language_modelling": "GPT, tinyshakespeare, bits per character",
}
VARIANTS = {
    "INT8, rounded": ("W8A8", "ptq", "-"),
    "INT4, rounded": ("W4A4", "ptq", "-"),
    "INT4, Hadamard rotation": ("W4A4", "ptq", "hadamard"),
    "INT4, trained (LSQ)": ("W4A4", "qat", "-"),
}
FLOAT = {"classification": 0.9173}


def run() -> list[Record]:
    """A record per trial of the three configs."""
    return [
        *run_config("cifar_resnet20_ptq.yaml"),
        *run_config("digit_detector.yaml"),
        *run_config("gpt_shakespeare.yaml", ["float.epochs=2", f"sweep={json.dumps({'list': GPT_TRIALS})}"]),
    ]


def _score(records: Sequence[Record], task: str, allocation: str, flow: str, methods: str) -> float | None:
    wanted = {"task": task, "allocation": allocation, "flow": flow, "methods": methods}
    own = [record for record in records if all(record[name] == value for name, value in wanted.items())]
    return own[0]["test"]["score"] if own else None


def _drop(records: Sequence[Record], task: str, variant: str) -> float | None:
    """From float, in hundredths of the score, positive where it is worse."""
    reference = _score(records, task, "float", "float", "-")
    score = _score(records, task, *VARIANTS[variant])
    if reference is None or score is None:
        return None
    better = next(record["higher_is_better"] for record in records if record["task"] == task)
    return 100 * (reference - score) * (1 if better else -1)


def rows(records: Sequence[Record]) -> list[Row]:
    """The float score of every task, and what is lost."""
    found = []
    for task, name in TASKS.items():
        published = FLOAT.get(task)
        score = _score(records, task, "float", "float", "-")
        found.append(Row(f"{name}, float", published, score, None if published is None else 0.001))
        for variant in VARIANTS:
            drop = _drop(records, task, variant)
            if drop is not None or "rounded" in variant:
                found.append(Row(f"{name}, drop of {variant}", None, drop))
    return found


def draw(records: Sequence[Record]) -> Picture:
    """Drops by task, on an axis that is linear up to a hundredth and logarithmic beyond."""
    from qresearch.report.figure import new_figure

    picture = new_figure(9.0, 4.6)
    axes = picture.subplots()
    for i, (variant, colour) in enumerate(zip(VARIANTS, ("#56B4E9", "#D55E00", "#E69F00", "#009E73"))):
        drops = [(j, drop) for j, task in enumerate(TASKS) if (drop := _drop(records, task, variant)) is not None]
        bars = axes.bar([j + 0.2 * (i - 1.5) for j, _ in drops], [drop for _, drop in drops], 0.19, color=colour)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
        bars.set_label(variant)
    axes.axhline(1.0, color="#555555", linestyle="--", linewidth=1, label="1 point")
    axes.axhline(0.0, color="#555555", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(-0.3, 40.0)
    axes.set_xticks(range(len(TASKS)), [name.replace(", ", "\n") for name in TASKS.values()], fontsize=8)
    axes.set(ylabel="drop from float, hundredths of the score")
    axes.grid(alpha=0.25, axis="y")
    axes.legend(fontsize=8)
    return picture


FIGURE = Figure(
    title="Degradation of INT8 and INT4 on three tasks",
    paper="our own",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
)
