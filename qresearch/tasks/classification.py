"""Classification: softmax cross-entropy and top-1 accuracy per example, so that callers choose the average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from qresearch.tasks.task import Task


def cross_entropy(outputs: Float[Array, "batch classes"], targets: Int[Array, "batch"]) -> Float32[Array, "batch"]:
    """Computes ``logsumexp(z) - z[target]`` per example in nats, in float32 whatever the outputs' dtype."""
    logits = outputs.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def top1(outputs: Float[Array, "batch classes"], targets: Int[Array, "batch"]) -> Float32[Array, "batch"]:
    """Computes 1 where the largest output (the first of equals) is the target's, else 0."""
    return (jnp.argmax(outputs, axis=-1) == targets).astype(jnp.float32)


classification = Task(loss=cross_entropy, score=top1, score_name="top1")
