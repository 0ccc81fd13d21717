"""HAWQ: the largest eigenvalue of the Hessian times the squared quantization error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qresearch.sensitivities.hessian import hessian_product, mean_loss, signs, trace_step
from qresearch.sensitivities.perturbation import (
    OPERANDS,
    Deltas,
    Perturbation,
    perturbation,
    rebatched,
    table_of_operands,
    widths_of,
)
from qresearch.sensitivities.subject import Sensitivity, Subject


def hawq_v1(subject: Subject, iterations: int = 8, batch: int = 64, seed: int = 0) -> Sensitivity:
    """½ λ · ‖Q(v) - v‖², with λ the largest eigenvalue (in magnitude) of the Hessian in a kernel or in an input.

    Power iteration on the block of every operand, on the first batch; the standard error (of what other batches would
    give) is not known and NaN. An upper bound of the second-order term, far above it where few directions are curved.
    Dong et al., HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision, 2019,
    https://arxiv.org/abs/1905.03696. Where we differ: the factor ½; inputs are treated as kernels are, each example
    alone.
    """
    part = perturbation(subject)
    qparams = [subject.qparams_at(width) for width in widths_of(subject)]
    x, y = next(rebatched(subject, batch))
    _, errors, loss = jax.device_get(trace_step(subject, part)(subject.params, qparams, x, y, jax.random.key(seed)))
    iterate = _power_step(subject, part)
    values: dict[str, list[float]] = {operand: [] for operand in OPERANDS}
    for row in range(len(subject.model.units)):
        for column, operand in enumerate(OPERANDS):
            direction, value = signs(jax.random.key(seed), part.zeros(subject.params, x)), jnp.float32(0)
            for _ in range(iterations):
                direction, value = iterate(subject.params, x, y, direction, jnp.int32(row), jnp.int32(column))
            values[operand].append(float(value))
        subject.progress(row + 1, len(subject.model.units))
    weight, input = [0.5 * np.array([values[operand]])[:, :, None] * errors[operand][None] for operand in OPERANDS]
    return table_of_operands(subject, weight, input, float(loss))


def _power_step(subject: Subject, part: Perturbation) -> Callable[..., tuple[Deltas, Array]]:
    """One power iteration on the block of layer ``row`` and operand ``column``: (next direction, eigenvalue)."""
    rows = {unit.layer.name: i for i, unit in enumerate(subject.model.units)}
    uses = {use.name: i for i, unit in enumerate(subject.model.units) for use in unit.uses}

    @jax.jit
    def step(params: Any, x: Array, y: Array, direction: Deltas, row: Array, column: Array) -> tuple[Deltas, Array]:
        def block(deltas: Deltas) -> Deltas:
            weights = {k: v * ((rows[k] == row) & (column == 0)) for k, v in deltas.weight.items()}
            return Deltas(weights, {k: v * ((uses[k] == row) & (column == 1)) for k, v in deltas.input.items()})

        loss, zeros = mean_loss(part, params, x, y), part.zeros(params, x)
        unit = block(direction)
        norm = jnp.sqrt(functools.reduce(jnp.add, [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(unit)]))
        unit = jax.tree.map(lambda leaf: leaf / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny), unit)
        product = block(hessian_product(loss, zeros, unit))
        value = functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), unit, product)))
        return product, jnp.abs(value) * jnp.where(column == 1, len(x), 1)

    return step
