"""Do sensitivities add up? The sums that allocators minimise, against the loss of whole allocations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qresearch.allocation.problem import Measure, draw_options
from qresearch.sensitivities.subject import Sensitivity


class Additivity(NamedTuple):
    """predicted: the summed sensitivities of some allocations; measured: the increase of their loss over the float
    model's, all layers quantized together.
    """

    predicted: Float[np.ndarray, "allocation"]
    measured: Float[np.ndarray, "allocation"]

    @property
    def rank_correlation(self) -> float:
        """Spearman's: 1 where the sums order the allocations as the measured losses do. NaN for fewer than 3."""
        if len(self.predicted) < 3:
            return float("nan")
        predicted, measured = (np.argsort(np.argsort(values)) for values in self)
        return float(np.corrcoef(predicted, measured)[0, 1])

    @property
    def ratio(self) -> float:
        """Σ measured / Σ predicted: 1 where losses add up, above it where layers make each other worse."""
        return float(self.measured.sum() / self.predicted.sum()) if self.predicted.sum() else float("nan")


def additivity(table: Sensitivity, measure: Measure, count: int = 16, seed: int = 0) -> Additivity:
    """How far the table predicts ``count`` random joint allocations, which it was not made from.

    Every layer draws uniformly from its menu. measure: the mean loss of allocations int[n, layer], on the examples of
    the table, so that what differs is how layers interact.
    """
    drawn = draw_options(np.random.default_rng(seed), np.isfinite(table.loss), count)
    predicted = table.loss[np.arange(len(table.loss)), drawn].sum(axis=1)
    return Additivity(predicted, np.asarray(measure(drawn), np.float64) - table.float_loss)
