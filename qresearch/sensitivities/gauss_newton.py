"""Gauss-Newton curvature: what is left of a Hessian where the outputs are linear in an operand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.sensitivities.hessian import sizes_of
from qresearch.sensitivities.perturbation import OPERANDS, Deltas, Perturbation
from qresearch.sensitivities.subject import Subject

# Of the Krylov space in which the square root is taken: exact for up to 16 outputs. Of 1,000 softmax outputs the root
# is off by less than 10 % of its norm, and the trace it is for by nothing: |H^½ u|² = uᵀHu in any Krylov space of u.
STEPS = 16


def gauss_newton_traces(subject: Subject, part: Perturbation) -> Callable[..., Float[Array, "operand layer"]]:
    """(params, x, y, key) -> ‖Jᵀ H^½ u‖² / n of every block, random signs u in the outputs of every example.

    Its mean over u is Tr(Jᵀ H J) / n, J the outputs' Jacobian in the block and H the loss's Hessian in the outputs. One
    backward pass serves all kernels and all inputs, and no block's estimate has another's noise in it.
    """

    @jax.jit
    def step(params: Any, x: Array, y: Array, key: Array) -> Array:
        zeros = part.zeros(params, x)
        outputs, pull, _ = jax.vjp(lambda deltas: part.outputs(deltas, params, x), zeros, has_aux=True)
        u = jax.random.rademacher(key, outputs.shape, jnp.float32)
        (slopes,) = pull(half_product(lambda found: subject.task.loss(found, y), outputs, u).astype(outputs.dtype))
        squares: Deltas = jax.tree.map(lambda slope: jnp.sum(jnp.square(slope.astype(jnp.float32))), slopes)
        weight = [squares.weight[unit.layer.name] for unit in subject.model.units]
        input = [sum((squares.input[use.name] for use in unit.uses), jnp.float32(0)) for unit in subject.model.units]
        sums = dict(zip(OPERANDS, (weight, input)))
        # Both are sums over examples (signs of different examples have mean zero): here they become means.
        table = jnp.stack([jnp.stack(sums[operand]) for operand in OPERANDS]) / len(x)
        return table / sizes_of(subject, zeros, len(x))

    return step


def half_product(
    loss: Callable[[Array], Float[Array, "example"]],
    outputs: Float[Array, "example ..."],
    u: Float[Array, "example ..."],
    steps: int = STEPS,
) -> Float[Array, "example ..."]:
    """H^½ u of every example, H the Hessian of its loss in its outputs; negative eigenvalues count as zero.

    Lanczos, with every vector made orthogonal to all before it: H^½ u ≈ V (VᵀHV)^½ Vᵀu in the space of u, Hu, H²u, ...
    Any differentiable loss will do, and no matrix of outputs × outputs is formed.
    Golub and Van Loan, Matrix Computations, 4th edition 2013, chapter 10.
    """
    shape, at = outputs.shape, outputs.astype(jnp.float32)
    examples = shape[0]
    start = u.astype(jnp.float32).reshape(examples, -1)
    steps = min(steps, start.shape[1])

    def product(v: Array) -> Array:
        slope = jax.grad(lambda found: jnp.sum(loss(found)))
        return jax.jvp(slope, (at,), (v.reshape(shape),))[1].astype(jnp.float32).reshape(examples, -1)

    def grow(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], Array]:
        basis, v = carry
        length = jnp.linalg.norm(v, axis=1, keepdims=True)
        for _ in range(2):  # once loses orthogonality in float32, twice is enough (Parlett)
            v = v - jnp.einsum("kni,nk->ni", basis, jnp.einsum("kni,ni->nk", basis, v))
        rest = jnp.linalg.norm(v, axis=1, keepdims=True)
        # What is left of a space that is used up is rounding: a zero vector adds nothing.
        v = jnp.where(rest > 1e-5 * length, v / jnp.maximum(rest, jnp.finfo(jnp.float32).tiny), 0.0)
        image = product(v)
        return (basis.at[index].set(v), image), image

    empty = jnp.zeros((steps, *start.shape), jnp.float32)
    (basis, _), images = jax.lax.scan(grow, (empty, start), jnp.arange(steps))
    small = jnp.einsum("jni,kni->njk", basis, images)
    values, vectors = jnp.linalg.eigh((small + small.swapaxes(1, 2)) / 2)
    weights = jnp.einsum("njk,nj->nk", vectors, jnp.einsum("kni,ni->nk", basis, start))
    rooted = jnp.einsum("njk,nk->nj", vectors, jnp.sqrt(jnp.maximum(values, 0.0)) * weights)
    return jnp.einsum("kni,nk->ni", basis, rooted).reshape(shape)
