"""What additive powers of two cost ResNet-20 at 4, 3 and 2 bits.

Paper: Additive Powers-of-Two Quantization, Li, Dong and Wang 2020, https://arxiv.org/abs/1909.13144, the table of
  CIFAR-10, as the authors' code reproduces it.
Published: float 92.96; W4A4 92.45, W3A3 92.49, W2A2 90.96 (yhhhli/APoT_Quantization @13204f1, README), hence drops of
  0.51, 0.47 and 2.00 points. (The paper's own float model has 91.6, by a user's quote in issue 21.)
Recipe: configs/cifar_apot.yaml, whose header says where it departs from theirs; three seeds; drops from our own float.
Run: not run; it needs a GPU.
Tolerance: 0.4 points of the drop at 4 and 3 bits, 0.7 at 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paper_figures.figure import Figure, Record, Row, published_bars
from paper_figures.sweeps import run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

CONFIG = "cifar_apot.yaml"
DROPS = {"W4A4": (0.51, 0.4), "W3A3": (0.47, 0.4), "W2A2": (2.00, 0.7)}  # published, tolerance


def run() -> list[Record]:
    """A record per trial."""
    return run_config(CONFIG)


def _mean(records: Sequence[Record], allocation: str) -> float | None:
    own = [record["test"]["score"] for record in records if record["allocation"] == allocation]
    return 100 * math.fsum(own) / len(own) if own else None


def rows(records: Sequence[Record]) -> list[Row]:
    """The mean drop over seeds at every width."""
    reference, found = _mean(records, "float"), []
    for allocation, (published, tolerance) in DROPS.items():
        score = _mean(records, allocation)
        drop = None if reference is None or score is None else reference - score
        found.append(Row(f"APoT {allocation}, drop from float, points", published, drop, tolerance))
    return [*found, Row("float, top-1", None, reference)]


def draw(records: Sequence[Record]) -> Picture:
    """Bars of ours and of the published drops."""
    return published_bars(rows(records)[: len(DROPS)], "drop from float (points)", (0.0, 3.0))


FIGURE = Figure(
    title="APoT on ResNet-20",
    paper="APoT (Li et al. 2020), table of CIFAR-10",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
    device="gpu",
)
