"""What the sensitivity posterior is fitted to: losses of single layers and of whole allocations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from qresearch.errors import ConfigError


class Joint(NamedTuple):
    """Losses of allocations with all layers quantized; +inf where the model diverged."""

    allocations: Int[np.ndarray, "joint layer"]
    losses: Float[np.ndarray, "joint"]

    def joined(self, other: Joint) -> Joint:
        """These and the other ones."""
        return Joint(np.concatenate([self.allocations, other.allocations]), np.concatenate([self.losses, other.losses]))


class Measurements(NamedTuple):
    """single: the loss increases of single layers per batch; NaN where not measured, +inf where not allowed.

    joint: losses of whole allocations; NaN rows are padding. base: (mean, sd), what is known about the loss of the
    float model before joint measurements. unit: every number is divided by it.
    """

    single: Float[np.ndarray, "batch layer option"]
    allocations: Int[np.ndarray, "joint layer"]
    joint: Float[np.ndarray, "joint"]
    base: tuple[float, float] = (0.0, 0.0)
    unit: float = 1.0

    @property
    def tried(self) -> Joint:
        """The whole allocations that were measured, and their losses."""
        known = ~np.isnan(self.joint)
        return Joint(np.asarray(self.allocations)[known], np.asarray(self.joint)[known])


def unit_of(single: Float[np.ndarray, "batch layer option"]) -> float:
    """The mean of the positive loss increases: the size at which the priors' scales are stated."""
    finite = np.isfinite(single)
    mean = np.where(finite, single, 0.0).sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
    positive = mean[mean > 0]
    if not positive.size:
        raise ConfigError("no single-layer loss is above the float model's: there is no sensitivity to model")
    return float(positive.mean())
