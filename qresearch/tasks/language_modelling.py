"""Language modelling: cross-entropy of the next symbol, and bits per character."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from qresearch.tasks.task import Task


def sequence_cross_entropy(
    outputs: Float[Array, "batch time vocabulary"], targets: Int[Array, "batch time"]
) -> Float32[Array, "batch"]:
    """Computes the mean over time of ``logsumexp(z) - z[target]`` in nats, in float32 whatever the outputs' dtype."""
    logits = outputs.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen, axis=-1)


def bits_per_character(
    outputs: Float[Array, "batch time vocabulary"], targets: Int[Array, "batch time"]
) -> Float32[Array, "batch"]:
    """Computes the cross-entropy in bits: log2 of how many equally likely symbols the model hesitates between."""
    return sequence_cross_entropy(outputs, targets) / math.log(2.0)


language_modelling = Task(
    loss=sequence_cross_entropy, score=bits_per_character, score_name="bits_per_character", higher_is_better=False
)
