"""Hessians of the mean loss in single operands, without ever forming one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qresearch.sensitivities.perturbation import (
    OPERANDS,
    Deltas,
    Perturbation,
    quantization_errors,
)
from qresearch.sensitivities.subject import Subject


def mean_loss(part: Perturbation, params: Any, x: Array, y: Array) -> Callable[[Deltas], tuple[Array, Any]]:
    """deltas -> (the mean loss over a batch, the recorded operands)."""

    def loss(deltas: Deltas) -> tuple[Array, Any]:
        losses, recorded = part.loss(deltas, params, x, y)
        return jnp.mean(losses), recorded

    return loss


def hessian_product(loss: Callable[[Deltas], tuple[Array, Any]], at: Deltas, direction: Deltas) -> Deltas:
    """H · direction, by differentiating the gradient forward."""
    gradient = jax.grad(lambda deltas: loss(deltas)[0])
    return jax.jvp(gradient, (at,), (direction,))[1]


def trace_step(subject: Subject, part: Perturbation) -> Callable[..., tuple[Any, Any, Array]]:
    """(params, qparams, x, y, key) -> per operand (zᵀHz / n [layer], mean ‖Q(v) - v‖² [layer, width]), mean loss."""

    @jax.jit
    def step(params: Any, qparams: Any, x: Array, y: Array, key: Array) -> tuple[Any, Any, Array]:
        loss, zeros = mean_loss(part, params, x, y), part.zeros(params, x)
        value, recorded = loss(zeros)
        z = signs(key, zeros)
        product = jax.tree.map(lambda a, b: jnp.sum(a * b), z, hessian_product(loss, zeros, z))
        found = quantization_errors(subject, recorded, qparams)
        curvature: dict[str, list[Array]] = {operand: [] for operand in OPERANDS}
        errors: dict[str, list[Array]] = {operand: [] for operand in OPERANDS}
        for unit in subject.model.units:
            name, uses = unit.layer.name, [use.name for use in unit.uses]
            # Of inputs: the mean loss has 1/examples of each example's Hessian, and n is one example's.
            curvature["weight"].append(product.weight[name] / zeros.weight[name].size)
            of_inputs = sum((product.input[use] for use in uses), jnp.float32(0))
            curvature["input"].append(of_inputs * len(x) / sum(zeros.input[use].size for use in uses))
            for operand, examples in (("weight", 1), ("input", len(x))):
                squares = [sum(jnp.sum(jnp.square(e)) for e in width) / examples for width in found[name][operand]]
                errors[operand].append(jnp.stack([jnp.asarray(square, jnp.float32) for square in squares]))
        return (*jax.tree.map(jnp.stack, (curvature, errors), is_leaf=lambda node: isinstance(node, list)), value)

    return step


def signs(key: Array, like: Deltas) -> Deltas:
    """Random signs of the shapes of ``like``."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves)]
    )
