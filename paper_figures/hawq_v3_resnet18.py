"""The trade-off of HAWQ-V3 on ResNet-18: its integer program solved again, bit for bit.

Paper: HAWQ-V3: Dyadic Neural Network Quantization, Yao et al. 2021, https://arxiv.org/abs/2011.10680, the table of
  mixed-precision ResNet-18 on ImageNet.
Published: the bits of nine configurations (Zhen-Dong/HAWQ @1616df6, bit_config.py); sizes 9.9, 7.9 and 7.3 MB at the
  high, medium and low size budget, 92, 72 and 54 Gbops at those of bops (model_zoo.md). Top-1 is shown as published
  (W8A8 71.56, W4A4 68.45) and was not run again.
Recipe: least Σ trace · ‖W - Q(W)‖² within c4 + t (c8 - c4), t = 0.25, 0.5, 0.75, of size, bops and latency, by the
  allocator ``exact``, on the authors' inputs (ILP.ipynb). Residual branches are tied, the first and the last layer stay
  at 8 bits. The inputs are theirs and are not in this repository: hawq_v3_resnet18.json in QRESEARCH_DATA holds
  the notebook's numbers, with the keys that ``run`` names.
Run: CPU (x86-64), 1 s.
Tolerance: bits exact; 0.2 MB, since their sizes count what ours do not; 1 Gbops, the rounding of the published ones.
  The authors' Gbops of mixed rows are millions of macs b² / 1024 (see ``qresearch.cost``), and so are ours here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paper_figures.figure import Figure, Record, Row, find
from qresearch.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

FILE = "hawq_v3_resnet18.json"
FRACTIONS = {0.75: "high", 0.5: "medium", 0.25: "low"}
CONSTRAINTS = {"modelsize": "size", "bops": "bops", "latency": "latency"}
SIZES = {("modelsize", 0.75): 9.9, ("modelsize", 0.5): 7.9, ("modelsize", 0.25): 7.3}  # MB
BOPS = {("bops", 0.75): 92, ("bops", 0.5): 72, ("bops", 0.25): 54}  # Gbops
TOP1 = {
    **dict(zip([("modelsize", t) for t in FRACTIONS], (71.20, 70.50, 70.01))),
    **dict(zip([("bops", t) for t in FRACTIONS], (70.40, 70.22, 68.72))),
    **dict(zip([("latency", t) for t in FRACTIONS], (70.40, 70.34, 68.56))),
}
ENDS_WEIGHTS = 3 * 64 * 49 + 512 * 1000  # of the first and the last layer, which are no part of the program
ENDS_MACS = 3 * 64 * 49 * 112 * 112 + 512 * 1000
MIB = 2.0**20
FRONT = 41  # budgets of the curve


def run() -> list[Record]:
    """A record per configuration: the bits, and what they cost; and two curves of budgets."""
    import numpy as np

    from qresearch.allocation import exact
    from qresearch.allocation.problem import Problem

    path = Path(os.environ.get("QRESEARCH_DATA", ".")) / FILE
    if not path.is_file():
        raise DataError(f"{path}: not found; it holds the inputs of HAWQ-V3's ILP.ipynb (github.com/Zhen-Dong/HAWQ)")
    data = json.loads(path.read_text(encoding="utf-8"))
    inputs = {name: np.array(values) for name, values in data["inputs"].items()}
    loss = inputs["Hutchinson_trace"][:, None] * np.stack(
        [inputs[f"delta_weights_{bits}bit_square"] for bits in (4, 8)], axis=1
    )
    costs = {
        "modelsize": np.stack([inputs["parameters"] / 2, inputs["parameters"]], axis=1),
        "bops": np.stack([inputs["bops"] / 64, inputs["bops"] / 16], axis=1),
        "latency": np.stack([inputs["latency_int4"], inputs["latency_int8"]], axis=1),
    }
    groups = tuple(map(tuple, data["tied_layers"]))
    found: list[Record] = []
    for constraint, own in costs.items():
        problem = Problem(loss, own[None], groups=groups)
        least, greatest = own.sum(axis=0)

        def solved(shares: Any, problem: Any = problem, least: float = least, greatest: float = greatest) -> Any:
            return exact.allocate(0, problem, [least + share * (greatest - least) for share in shares])[0]

        for share, allocation in zip(FRACTIONS, solved(FRACTIONS)):
            published = data["published_bits"][f"{constraint}_{share}"]
            found.append(
                _record("configuration", constraint, share, loss, costs, allocation) | {"published": published}
            )
        shares = np.linspace(0, 1, FRONT)
        found += [_record("front", constraint, s, loss, costs, row) for s, row in zip(shares, solved(shares))]
    return found


def _record(kind: str, constraint: str, share: float, loss: Any, costs: Any, allocation: Any) -> dict[str, Any]:
    """Of the whole network: MB of weights, and Gbops as the authors count them; of the program's layers: Σ Ω, bits."""
    layers = range(len(allocation))
    size = (costs["modelsize"][layers, allocation].sum() * MIB + ENDS_WEIGHTS) / MIB
    bops = costs["bops"][layers, allocation].sum() + ENDS_MACS / 1e6 / 16  # millions of macs b² / 1024
    return {
        "kind": kind,
        "constraint": constraint,
        "share": round(float(share), 6),
        "bits": [(4, 8)[option] for option in allocation],
        "omega": float(loss[layers, allocation].sum()),
        "size": float(size),
        "bops": float(bops),
    }


def rows(records: Sequence[Record]) -> list[Row]:
    """Nine times the layers whose bits are the published ones, then sizes and bit-operations."""
    found = []
    for constraint, word in CONSTRAINTS.items():
        for share, name in FRACTIONS.items():
            bits, published = (
                find(records, field, kind="configuration", constraint=constraint, share=share)
                for field in ("bits", "published")
            )
            same = None if bits is None else sum(ours == theirs for ours, theirs in zip(bits, published))
            found.append(Row(f"{word} {name}: layers with the published bits", 19, same, 0.0))
    for unit, field, published, tolerance in (("MB", "size", SIZES, 0.2), ("Gbops", "bops", BOPS, 1.0)):
        for (constraint, share), value in published.items():
            ours = find(records, field, kind="configuration", constraint=constraint, share=share)
            found.append(Row(f"{CONSTRAINTS[constraint]} {FRACTIONS[share]}: {unit}", value, ours, tolerance))
    return found


def draw(records: Sequence[Record]) -> Picture:
    """Ω against size and against bops with the published configurations, and their bits."""
    from qresearch.report.figure import new_figure

    picture = new_figure(13.0, 4.6)
    panels = picture.subplots(1, 3, width_ratios=(1, 1, 1.3))
    chosen = [record for record in records if record["kind"] == "configuration"]
    for axes, constraint, field, unit in zip(panels, ("modelsize", "bops"), ("size", "bops"), ("MB", "Gbops")):
        front = [r for r in records if r["kind"] == "front" and r["constraint"] == constraint]
        axes.plot([r[field] for r in front], [r["omega"] for r in front], color="#0072B2", label="ours, 41 budgets")
        own = [record for record in chosen if record["constraint"] == constraint]
        x, y = [record[field] for record in own], [record["omega"] for record in own]
        axes.plot(
            x,
            y,
            "o",
            markersize=11,
            fillstyle="none",
            color="#D55E00",
            label="at the published budgets; published top-1",
        )
        for record in own:
            top1 = TOP1[constraint, record["share"]]
            axes.annotate(
                f"{top1:.2f}", (record[field], record["omega"]), xytext=(9, 6), textcoords="offset points", fontsize=8
            )
        axes.set(xlabel=f"{CONSTRAINTS[constraint]} ({unit})", ylabel="Σ trace · ‖W − Q(W)‖²")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    picture_bits = panels[2]
    picture_bits.imshow([record["bits"] for record in chosen], cmap="Blues", vmin=0, vmax=12, aspect="auto")
    for i, record in enumerate(chosen):
        for j, (bits, published) in enumerate(zip(record["bits"], record["published"])):
            colour = "black" if bits == published else "red"
            picture_bits.text(j, i, str(bits), ha="center", va="center", fontsize=7, color=colour)
    names = [f"{CONSTRAINTS[record['constraint']]} {FRACTIONS[record['share']]}" for record in chosen]
    picture_bits.set_yticks(range(len(names)), names, fontsize=8)
    picture_bits.set_xticks(range(0, 19, 2))
    picture_bits.set(xlabel="layer", title="our bits (red: other than published)")
    return picture


FIGURE = Figure(
    title="Mixed precision on ResNet-18 by HAWQ-V3's program",
    paper="HAWQ-V3 (Yao et al. 2021), table of ResNet-18",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
)
