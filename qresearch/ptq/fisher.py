"""How much the loss depends on every element of a segment's output: the diagonal of the Fisher information."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.graph.handlers import identity
from qresearch.ptq.sequence import model_segments
from qresearch.ptq.state import Quantized


def output_importance(quantized: Quantized, batch: int) -> list[Float[np.ndarray, "examples ..."]]:
    """For every segment, (∂loss/∂output)² of each calibration example in the float model, over its mean: in one pass.

    With the targets of the data it is the empirical Fisher information (Kunstner et al. 2019,
    https://arxiv.org/abs/1905.12558, on where it departs from the true one). Halved with a constant, because the
    gradient of an example that the model is sure of is near 0, and its outputs still have to be kept:
    (1 + g² / mean(g²)) / 2.
    """
    size, params = min(batch, len(quantized.x)), quantized.params
    parts = model_segments(quantized, size)

    def end(deltas: list[Any], params: Any, x: Array) -> Any:
        for part, delta in zip(parts, deltas, strict=True):
            x = jax.tree.map(jnp.add, part.run(identity, params, x)[0], delta)
        return x

    @jax.jit
    def gradients(params: Any, x: Array, y: Array) -> list[Any]:
        deltas, value = [], x
        for part in parts:
            value = jax.eval_shape(lambda value, part=part: part.run(identity, params, value)[0], value)
            deltas.append(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), value))
        return jax.grad(lambda deltas: jnp.sum(quantized.loss(end(deltas, params, x), y)))(deltas)

    starts = range(0, len(quantized.x) // size * size, size)
    found = [gradients(params, quantized.x[i : i + size], quantized.targets[i : i + size]) for i in starts]
    return [_relative(np.concatenate([np.asarray(part) for part in column])) for column in zip(*found, strict=True)]


def _relative(gradient: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    squared = np.square(gradient)
    mean = float(squared.mean(dtype=np.float64))
    return np.asarray((1.0 + squared / mean) / 2.0 if mean > 0 else np.ones_like(squared), np.float32)
