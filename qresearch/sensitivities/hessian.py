"""Hessians of the loss in one layer's kernel or input, without ever forming one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qresearch.sensitivities.perturbation import OPERANDS, Deltas, Perturbation
from qresearch.sensitivities.subject import Subject

# Of one operand, by the layer's name (weight) or by the use's name (input).
Leaves = dict[str, Array]


def block_of(subject: Subject, operand: str, leaves: Leaves, row: Int[Array, ""]) -> Leaves:
    """What is of layer ``row``, zero elsewhere. The row is traced, so that all layers are one program."""
    if operand == "weight":
        rows = {unit.layer.name: i for i, unit in enumerate(subject.model.units)}
    else:
        rows = {use.name: i for i, unit in enumerate(subject.model.units) for use in unit.uses}
    return {name: leaf * (rows[name] == row) for name, leaf in leaves.items()}


def hessian_product(
    part: Perturbation, params: Any, x: Array, y: Array, operand: str, direction: Leaves
) -> dict[str, Array]:
    """H · direction of the mean loss in all kernels or in all inputs, by differentiating the gradient forward."""
    zeros = part.zeros(params, x)

    def mean_loss(own: Leaves) -> Array:
        return jnp.mean(part.loss(zeros._replace(**{operand: own}), params, x, y)[0])

    return jax.jvp(jax.grad(mean_loss), (getattr(zeros, operand),), (direction,))[1]


def inner_product(a: Leaves, b: Leaves) -> Float[Array, ""]:
    """Σ a b over all leaves."""
    return functools.reduce(jnp.add, [jnp.sum((a[name] * b[name]).astype(jnp.float32)) for name in a])


def signs(key: Array, like: Leaves) -> Leaves:
    """Random signs of the shapes of ``like``."""
    keys = jax.random.split(key, len(like))
    return {name: jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, (name, leaf) in zip(keys, like.items())}


def sizes_of(subject: Subject, zeros: Deltas, examples: int) -> Float[Array, "operand layer"]:
    """The elements of every layer's kernel, and of its inputs in one example."""
    units = subject.model.units
    weight = [zeros.weight[unit.layer.name].size for unit in units]
    input = [sum(zeros.input[use.name].size for use in unit.uses) / examples for unit in units]
    return jnp.asarray([weight, input], jnp.float32)


def hessian_traces(subject: Subject, part: Perturbation) -> Callable[..., Float[Array, "operand layer"]]:
    """(params, x, y, key) -> zᵀ H z / n of every block, random signs z in that block alone.

    Block by block, because what couples blocks has mean zero and a large variance. On ResNet-20 signs in all kernels at
    once, and then in all inputs, took 1/20 of the time and had 1.7 to 15 times the standard deviation (median 6; the
    root of 20 is 4.5): dearer for the same error, and layers of small traces drowned.
    """

    @functools.partial(jax.jit, static_argnames="operand")
    def step(params: Any, x: Array, y: Array, key: Array, row: Array, operand: str) -> Array:
        zeros = part.zeros(params, x)
        z = block_of(subject, operand, signs(key, getattr(zeros, operand)), row)
        # Of inputs, the mean loss has 1/examples of each example's Hessian, and z covers all examples: the sum over
        # blocks that the product has is already the mean over examples.
        trace = inner_product(z, hessian_product(part, params, x, y, operand, z))
        return trace / sizes_of(subject, zeros, len(x))[OPERANDS.index(operand), row]

    def traces(params: Any, x: Array, y: Array, key: Array) -> Array:
        rows = range(len(subject.model.units))
        keys = jax.random.split(key, (len(OPERANDS), len(rows)))
        return jnp.stack(
            [
                jnp.stack([step(params, x, y, keys[i, row], jnp.int32(row), operand) for row in rows])
                for i, operand in enumerate(OPERANDS)
            ]
        )

    return traces
