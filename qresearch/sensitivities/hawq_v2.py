"""HAWQ-V2: the average trace of the Hessian times the squared quantization error."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from qresearch.sensitivities.hessian import trace_step
from qresearch.sensitivities.perturbation import (
    OPERANDS,
    perturbation,
    rebatched,
    table_of_operands,
    widths_of,
)
from qresearch.sensitivities.subject import Sensitivity, Subject


def hawq_v2(subject: Subject, probes: int = 4, batch: int = 64, seed: int = 0) -> Sensitivity:
    """½ Tr(H) / n · ‖Q(v) - v‖², with H the Hessian of the mean loss in the n elements of a kernel or of an input.

    Tr(H) is estimated as Hutchinson does, by E[zᵀHz] over random signs z; Hz by forward-over-reverse differentiation.
    One probe asks all operands at once (what couples them has mean zero). The Hessian in inputs is that of each example
    alone. Samples are all pairs of a probe and a batch; their spread gives the standard error. Negative estimates are
    kept: they are what the samples say.
    Dong et al., HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks, 2020,
    https://arxiv.org/abs/1911.03852. Where we differ: the factor ½ makes it the second-order term of the loss;
    probes of all layers at once; an option costs what its two widths cost.
    """
    part = perturbation(subject)
    step = trace_step(subject, part)
    qparams = [subject.qparams_at(width) for width in widths_of(subject)]
    found: list[Any] = []
    for x, y in rebatched(subject, batch):
        for _ in range(probes):
            key = jax.random.fold_in(jax.random.key(seed), len(found))
            found.append(jax.device_get(step(subject.params, qparams, x, y, key)))
            subject.progress(len(found), probes * max(subject.batches.examples // batch, 1))
    curvature, errors, loss = (jax.tree.map(lambda *leaves: np.stack(leaves), *column) for column in zip(*found))
    # The squared error is that of all batches: averaged before it multiplies the samples of the trace.
    weight, input = [0.5 * curvature[operand][:, :, None] * errors[operand].mean(axis=0) for operand in OPERANDS]
    return table_of_operands(subject, weight, input, float(loss.mean()))
