"""The true increase of the loss: the reference that all proxies are judged by."""

from __future__ import annotations

import numpy as np

from qresearch.errors import DataError
from qresearch.population import evaluate_population
from qresearch.sensitivities.subject import Sensitivity, Subject


def loss_increase(subject: Subject) -> Sensitivity:
    """The mean over examples of loss(one layer quantized) - loss(float model), in the loss's unit.

    One compilation (the one that ``evaluate_population`` uses anyway) and one pass over the batches per pair. The sum
    over layers predicts the loss of an allocation as far as the layers do not interact. No paper: the definition.
    """
    rows = subject.one_at_a_time()
    model, params, qparams, batches, task, prepare, chunk, on_done = subject
    losses = evaluate_population(model, params, qparams, rows, batches, task, prepare, chunk, on_done, True).loss
    if not np.isfinite(losses[-1]).all():
        raise DataError("the float model's loss is not finite on these examples, so nothing can be compared with it")
    return subject.table(losses[:-1].astype(np.float64) - losses[-1], float(losses[-1].mean()))
