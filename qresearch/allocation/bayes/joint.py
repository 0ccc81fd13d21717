"""Whole allocations and what they were measured to lose."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Joint(NamedTuple):
    """Losses of allocations with all layers quantized; +inf where the model diverged."""

    allocations: Int[np.ndarray, "joint layer"]
    losses: Float[np.ndarray, "joint"]

    def joined(self, other: Joint) -> Joint:
        """These and the other ones."""
        return Joint(np.concatenate([self.allocations, other.allocations]), np.concatenate([self.losses, other.losses]))
