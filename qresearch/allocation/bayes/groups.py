"""Draws in the form that ArviZ takes: ``arviz_base.from_dict(groups)``, or ``arviz.from_dict(**groups)`` before 1.0."""

from __future__ import annotations

import numpy as np

from qresearch.allocation.bayes.measurements import Measurements
from qresearch.allocation.bayes.posterior import Posterior


def groups_of(
    random: np.random.Generator, posterior: Posterior, measurements: Measurements
) -> dict[str, dict[str, np.ndarray]]:
    """posterior [chain, draw, ...] in units of ``Measurements.unit``; sample_stats: diverging [chain, draw];
    observed_data: joint [measurement], in the unit of the losses; posterior_predictive: joint [chain, draw,
    measurement], of the same allocations; constant_data: that unit.
    """
    known = np.isfinite(measurements.joint)
    mean, sd = posterior.predict(np.asarray(measurements.allocations)[known])
    predictive = (mean + sd * random.normal(size=mean.shape)).reshape(*posterior.diverging.shape, -1)
    return {
        "posterior": dict(posterior.sites),
        "sample_stats": {"diverging": posterior.diverging},
        "observed_data": {"joint": np.asarray(measurements.joint)[known]},
        "posterior_predictive": {"joint": predictive},
        "constant_data": {"unit": np.asarray(measurements.unit)},
    }
