"""What a task is: the loss a model is trained on and the score it is reported by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# (outputs [batch, ...], targets [batch, ...]) -> float32 [batch]; jittable.
Loss: TypeAlias = Callable[[Array, Array], Array]
# (outputs [batch, ...], targets [batch, ...]) -> float32 [batch, ...], what the score needs of each example; jittable.
Evidence: TypeAlias = Callable[[Array, Array], Array]
# (outputs [batch, ...], the float model's [batch, ...]) -> float32 [batch], 0 where they say the same; jittable.
Divergence: TypeAlias = Callable[[Array, Array], Array]
# evidence [example, ...] -> [example]; NumPy.
Shares: TypeAlias = Callable[[np.ndarray], np.ndarray]


def themselves(evidence: np.ndarray) -> np.ndarray:
    """The shares of a score that is a mean over examples: the evidence."""
    return evidence


def softmax_divergence(outputs: Array, reference: Array) -> Float[Array, "batch"]:
    """KL(softmax(reference) || softmax(outputs)) over the last axis, in nats, averaged over the axes between."""
    log_p, log_q = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (reference, outputs))
    each = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return jnp.mean(each.reshape(len(each), -1), axis=-1)


class Task(NamedTuple):
    """The loss (smaller is better) and the score (``score_name`` in records) of a task, per example.

    ``shares`` turns the evidence of a set of examples, as ``score`` finds it, into one number per example whose mean is
    the score of the set and whose spread is the score's under resampling of the examples: θ + N ∂θ/∂wᵢ at equal weights
    w (the infinitesimal jackknife: Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982,
    https://doi.org/10.1137/1.9781611970319). Of a mean that is the evidence itself. So records, intervals and paired
    comparisons know one number per example, whatever the score is.

    ``divergence``: how far outputs are from the float model's, without targets.
    """

    loss: Loss
    score: Evidence
    score_name: str
    higher_is_better: bool = True
    shares: Shares = themselves
    divergence: Divergence = softmax_divergence

    def reduce(self, evidence: Float[np.ndarray, "example ..."]) -> float:
        """The score of a set of examples."""
        # float64: the sum of large but finite values overflows float32.
        return float(np.mean(self.shares(evidence), dtype=np.float64))

    @property
    def sign(self) -> int:
        """1, or −1 where a smaller score is better: of two scores, the better one has the larger sign · score."""
        return 1 if self.higher_is_better else -1
