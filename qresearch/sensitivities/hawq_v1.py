"""HAWQ: the largest eigenvalue of the Hessian times the squared quantization error."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.sensitivities.hessian import Leaves, block_of, hessian_product, inner_product, signs
from qresearch.sensitivities.perturbation import (
    OPERANDS,
    Perturbation,
    perturbation,
    rebatched,
    squared_errors,
    table_of_operands,
    widths_of,
)
from qresearch.sensitivities.subject import Sensitivity, Subject


def hawq_v1(subject: Subject, iterations: int = 8, batch: int = 64, repeats: int = 1, seed: int = 0) -> Sensitivity:
    """½ λ · ‖Q(v) - v‖², with λ the largest eigenvalue (in magnitude) of the Hessian in a kernel or in an input.

    Power iteration on the block of every operand: of the mean loss of a batch for a kernel; for inputs of each example
    alone, in a direction of its own, and λ is the mean over examples. On the first ``repeats`` batches; the standard
    error is over them, and NaN for one. An upper bound of the second-order term, far above it where few directions are
    curved, so that it ranks layers worse than a trace does.
    Dong et al., HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision, 2019,
    https://arxiv.org/abs/1905.03696. Where we differ: the factor ½; inputs are treated as kernels are.
    """
    part = perturbation(subject)
    errors_of = squared_errors(subject, part)
    qparams = [subject.qparams_at(width) for width in widths_of(subject)]
    chosen = list(itertools.islice(rebatched(subject, batch), repeats))
    errors = [jax.device_get(errors_of(subject.params, qparams, x, y)) for x, y in chosen]
    squares, loss = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0), *errors)
    samples: dict[str, list[list[float]]] = {operand: [] for operand in OPERANDS}
    rounds = itertools.count(1)
    for operand in OPERANDS:
        iterate = _power_step(subject, part, operand)
        for x, y in chosen:
            samples[operand].append([])
            start = _start(part, subject.params, x, operand, jax.random.key(seed))
            for row in range(len(subject.model.units)):
                direction, value = start, jnp.float32(0)
                for _ in range(iterations):
                    direction, value = iterate(subject.params, x, y, direction, jnp.int32(row))
                samples[operand][-1].append(float(value))
                subject.progress(next(rounds), len(OPERANDS) * len(chosen) * len(subject.model.units))
    weight, input = [0.5 * np.array(samples[operand])[:, :, None] * squares[operand] for operand in OPERANDS]
    return table_of_operands(subject, weight, input, float(loss))


def _start(part: Perturbation, params: Any, x: Array, operand: str, key: Array) -> Leaves:
    """Random signs: in kernels, or for every example in its own inputs (leaves [example, ...])."""
    zeros = getattr(part.zeros(params, x[:1]), operand)
    if operand == "weight":
        return signs(key, zeros)
    return jax.vmap(lambda key: signs(key, zeros))(jax.random.split(key, len(x)))


def _power_step(subject: Subject, part: Perturbation, operand: str) -> Callable[..., tuple[Leaves, Float[Array, ""]]]:
    """One power iteration on an operand of layer ``row``: (next direction, |eigenvalue|, of inputs the mean)."""

    def iterate(params: Any, x: Array, y: Array, direction: Leaves, row: Array) -> tuple[Leaves, Array]:
        unit = block_of(subject, operand, direction, row)
        norm = jnp.maximum(jnp.sqrt(inner_product(unit, unit)), jnp.finfo(jnp.float32).tiny)
        unit = {name: (leaf / norm).astype(leaf.dtype) for name, leaf in unit.items()}
        product = hessian_product(part, params, x, y, operand, unit)
        return product, jnp.abs(inner_product(unit, product))

    @jax.jit
    def step(params: Any, x: Array, y: Array, direction: Leaves, row: Array) -> tuple[Leaves, Array]:
        if operand == "weight":
            return iterate(params, x, y, direction, row)

        def alone(x: Array, y: Array, own: Leaves) -> tuple[Leaves, Array]:
            return iterate(params, x[None], y[None], own, row)

        directions, values = jax.vmap(alone)(x, y, direction)
        return directions, jnp.mean(values)

    return step
