"""Empirical Fisher information times squared quantization error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qresearch.sensitivities.perturbation import (
    OPERANDS,
    Deltas,
    perturbation,
    quantization_errors,
    rebatched,
    table_of_operands,
    widths_of,
)
from qresearch.sensitivities.subject import Sensitivity, Subject


def fisher(subject: Subject) -> Sensitivity:
    """½ Σ_i F_i (Q(v)_i - v_i)² over the elements of a layer's kernel and of its input, F_i the mean of g_i².

    g: the gradient of one example's loss in the element, at the data's target. Second order in the error, with the
    diagonal of the empirical Fisher information in place of the Hessian; an option costs what its two widths cost. One
    forward and backward pass per example, one compilation. The standard error is over examples.
    Dong et al. and others use it as a proxy of HAWQ's Hessian; the formula is that of Theis et al., Faster Gaze
    Prediction with Dense Networks and Fisher Pruning, 2018, https://arxiv.org/abs/1801.05787, with Q(v) - v in place of
    -v. Kunstner et al. 2019, https://arxiv.org/abs/1905.12558, say where it departs from the true information.
    """
    part = perturbation(subject)
    qparams = [subject.qparams_at(width) for width in widths_of(subject)]

    @jax.jit
    def step(params: Any, qparams: Any, x: Array, y: Array) -> tuple[Array, Array, Array]:
        def total(deltas: Deltas) -> tuple[Array, Any]:
            losses, recorded = part.loss(deltas, params, x, y)
            return jnp.sum(losses), recorded

        (loss, recorded), gradient = jax.value_and_grad(total, has_aux=True)(part.zeros(params, x))
        errors = quantization_errors(subject, recorded, qparams)
        rows: dict[str, list[Array]] = {operand: [] for operand in OPERANDS}
        for unit in subject.model.units:
            slopes = {
                "weight": [gradient.weight[unit.layer.name]],
                "input": [gradient.input[use.name] for use in unit.uses],
            }
            for operand in OPERANDS:
                widths = errors[unit.layer.name][operand]
                rows[operand].append(jnp.stack([_quadratic(slopes[operand], error) for error in widths]))
        return jnp.stack(rows["weight"]), jnp.stack(rows["input"]), loss

    found: list[Any] = []
    for x, y in rebatched(subject, 1):
        found.append(jax.device_get(step(subject.params, qparams, x, y)))
        subject.progress(len(found), subject.batches.examples)
    weight, input, loss = (np.stack(column).astype(np.float64) for column in zip(*found))
    return table_of_operands(subject, weight, input, float(loss.mean()))


def _quadratic(slopes: list[Array], errors: list[Array]) -> Array:
    squares = (jnp.sum(jnp.square(g * e).astype(jnp.float32)) for g, e in zip(slopes, errors, strict=True))
    return 0.5 * sum(squares, jnp.float32(0))
