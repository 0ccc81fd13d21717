"""Quantization-aware training held against public runs: DoReFa W3A8, PACT W3A4 and LSQ W2A2 on ResNet-20.

Paper: DoReFa-Net, Zhou et al. 2016, https://arxiv.org/abs/1606.06160; PACT, Choi et al. 2018,
  https://arxiv.org/abs/1805.06085; LSQ, Esser et al. 2020, https://arxiv.org/abs/1902.08153. The numbers are of public
  runs on CIFAR-10, not of these papers.
Published: PreAct ResNet-20: float 92.13 and DoReFa W3A8 91.44 (means of 4 runs, 91.31 to 91.56; IntelLabs/distiller
  @d859fc8, preact_resnet_cifar_dorefa.yaml; the version @177d4c3 of that file has 92.22 and 91.605), PACT W3A4 91.44
  at the last epoch (preact_resnet20_cifar_pact.yaml). ResNet-20: float 91.8, LSQ W2A2 90.2 (hustzxd/LSQuantization
  issue 2, one user's run).
Recipe: configs/cifar_anchored_qat.yaml, whose header says where it departs from theirs; three seeds.
Run: not run; it needs a GPU.
Tolerance: 0.35 points (DoReFa, four anchors), 0.5 (PACT), 0.8 (LSQ, one anchor), 0.5 for the float models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paper_figures.figure import Figure, Record, Row, published_bars
from paper_figures.sweeps import run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

CONFIG = "cifar_anchored_qat.yaml"
ANCHORS = {  # (model, allocation): what it is, the published top-1, the tolerance
    ("preact_resnet20", "float"): ("PreAct ResNet-20 float", 92.13, 0.5),
    ("preact_resnet20", "W3A8"): ("DoReFa W3A8", 91.44, 0.35),
    ("preact_resnet20", "W3A4"): ("PACT W3A4", 91.44, 0.5),
    ("resnet20", "float"): ("ResNet-20 float", 91.8, 0.5),
    ("resnet20", "W2A2"): ("LSQ W2A2", 90.2, 0.8),
}


def run() -> list[Record]:
    """A record per trial."""
    return run_config(CONFIG)


def rows(records: Sequence[Record]) -> list[Row]:
    """The mean over seeds of every anchored number."""
    found = []
    for (model, allocation), (name, published, tolerance) in ANCHORS.items():
        own = [r["test"]["score"] for r in records if (r["model"], r["allocation"]) == (model, allocation)]
        ours = 100 * math.fsum(own) / len(own) if own else None
        found.append(Row(f"{name}, top-1", published, ours, tolerance))
    return found


def draw(records: Sequence[Record]) -> Picture:
    """Bars of ours and of the published numbers."""
    return published_bars(rows(records), "top-1 (%)", (88.0, 93.5))


FIGURE = Figure(
    title="QAT held against public runs, ResNet-20",
    paper="DoReFa, PACT, LSQ; public runs on CIFAR-10",
    run=run,
    rows=rows,
    draw=draw,
    needs="QRESEARCH_DATA=FOLDER",
    device="gpu",
)
