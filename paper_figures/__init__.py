"""Figures and tables of papers, ours beside the published numbers, and our own: one file each.

``qresearch figure NAME`` draws one from ``data/NAME.jsonl``; with ``--run`` it first makes these records.
"""

from __future__ import annotations

from paper_figures import (
    allocation_cost,
    anchored_qat,
    apot_levels,
    apot_resnet20,
    bayesian_bits_mnist,
    bayesian_bits_vgg7,
    degradation,
    dq_gradients,
    hawq_v3_resnet18,
    lsq_gradient_scale,
    lsq_pact_gradients,
    optimal_clips,
    ptq_ladder,
    reliability,
    search_fronts,
)
from paper_figures.figure import Figure

FIGURES: dict[str, Figure] = {
    "hawq_v3_resnet18": hawq_v3_resnet18.FIGURE,
    "optimal_clips": optimal_clips.FIGURE,
    "dq_gradients": dq_gradients.FIGURE,
    "lsq_pact_gradients": lsq_pact_gradients.FIGURE,
    "lsq_gradient_scale": lsq_gradient_scale.FIGURE,
    "bayesian_bits_mnist": bayesian_bits_mnist.FIGURE,
    "apot_levels": apot_levels.FIGURE,
    "apot_resnet20": apot_resnet20.FIGURE,
    "anchored_qat": anchored_qat.FIGURE,
    "ptq_ladder": ptq_ladder.FIGURE,
    "bayesian_bits_vgg7": bayesian_bits_vgg7.FIGURE,
    "search_fronts": search_fronts.FIGURE,
    "reliability": reliability.FIGURE,
    "degradation": degradation.FIGURE,
    "allocation_cost": allocation_cost.FIGURE,
}
