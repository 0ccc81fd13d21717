"""The interpreter: runs a planned jaxpr and hands every layer to a handler.

Per-layer *state* (bits, qparams, keys) goes in as arguments and *aux* comes out as results, through scans and remat
alike; a handler that recorded by side effect would leak tracers. Both are keyed by a site's base name inside, where a
site that stands for several iterations has state stacked along one leading axis per enclosing scan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from qresearch.compat import evaluate_equation, is_dropped, is_literal, scan_counts
from qresearch.graph.plan import Nested, Plan, Site

States = dict[str, Any]


class Call(NamedTuple):
    """One execution of a layer, as a handler sees it.

    site: its static facts. contract: (weight, input) -> output, the model's own contraction. state: the layer's entry
    of the states given to the interpreter, or None. index: which of the scans' iterations this is (0 outside a scan),
    traced: fold it into keys.
    """

    site: Site
    contract: Callable[[jax.Array, jax.Array], jax.Array]
    weight: jax.Array
    input: jax.Array
    state: Any
    index: Any


class Handler(Protocol):
    """Computes a layer's output, and an aux pytree of arrays or None. Handlers are pure; aux reaches the caller."""

    def __call__(self, call: Call) -> tuple[jax.Array, Any]: ...


def evaluate(
    plan: Plan, handler: Handler, states: States, arguments: Sequence[Any], index: Any = 0
) -> tuple[list[Any], States]:
    """The outputs of a planned jaxpr, and the aux of its sites: leaves [*iterations, calls, ...], by base name."""
    values: dict[Any, Any] = dict(zip(plan.jaxpr.invars, arguments)) | dict(zip(plan.jaxpr.constvars, plan.consts))
    aux = execute(plan, range(len(plan.jaxpr.eqns)), handler, states, values, index)
    return [read(atom, values) for atom in plan.jaxpr.outvars], aux


def execute(
    plan: Plan, positions: Iterable[int], handler: Handler, states: States, values: dict[Any, Any], index: Any = 0
) -> States:
    """Runs the equations at these positions, in this order, and adds what they compute to ``values``: the aux."""
    aux: States = {}
    for position in positions:
        equation, entry = plan.jaxpr.eqns[position], plan.entries.get(position)
        inputs = [read(atom, values) for atom in equation.invars]
        if entry is None:
            outputs = evaluate_equation(equation, inputs)
        elif isinstance(entry, Site):
            output, found = _run_layer(entry, equation, handler, states.get(entry.base), inputs, index)
            outputs = [output]
            aux[entry.base] = jax.tree.map(lambda leaf: leaf[None], found)
        else:
            outputs, found = _NESTED[entry.kind](entry, equation, handler, states, inputs, index)
            aux |= found
        values.update((v, output) for v, output in zip(equation.outvars, outputs) if not is_dropped(v))
    return aux


def read(atom: Any, values: dict[Any, Any]) -> Any:
    """The value of a variable, or a literal's own."""
    return atom.val if is_literal(atom) else values[atom]


def _run_layer(
    site: Site, equation: Any, handler: Handler, state: Any, inputs: list[Any], index: Any
) -> tuple[jax.Array, Any]:
    kernel = site.contraction.weight_operand

    def contract(weight: jax.Array, input: jax.Array) -> jax.Array:
        operands = (weight, input) if kernel == 0 else (input, weight)
        return evaluate_equation(equation, operands)[0]

    return handler(Call(site, contract, inputs[kernel], inputs[1 - kernel], state, index))


# The model's own jit is kept: run op by op, its last bits would differ. Under a trace it is inlined (``inline``). The
# static arguments are hashed by identity, so that eager calls compile once per handler; a scan would compile anew else.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _run_jit(
    nested: Nested, equation: Any, handler: Handler, states: States, inputs: list[Any], index: Any
) -> tuple[list[Any], States]:
    return evaluate(nested.plan, handler, states, inputs, index)


def _run_remat(
    nested: Nested, equation: Any, handler: Handler, states: States, inputs: list[Any], index: Any
) -> tuple[list[Any], States]:
    """Inlining would drop the rematerialization: the interpreted body is checkpointed again, with the same policy."""

    def body(states: States, inputs: list[Any], index: Any) -> tuple[list[Any], States]:
        return evaluate(nested.plan, handler, states, inputs, index)

    policy, prevent_cse = equation.params["policy"], equation.params["prevent_cse"]
    return jax.checkpoint(body, policy=policy, prevent_cse=prevent_cse)(states, inputs, index)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _run_scan(
    nested: Nested, equation: Any, handler: Handler, states: States, inputs: list[Any], index: Any
) -> tuple[list[Any], States]:
    """States of iterated sites are scanned along; those of the others are the same in every iteration."""
    params = equation.params
    consts, carries = scan_counts(params)
    constants, carry, slices = inputs[:consts], inputs[consts : consts + carries], inputs[consts + carries :]
    scanned = {base: state for base, state in states.items() if base in nested.iterated}
    fixed = {base: state for base, state in states.items() if base not in nested.iterated}

    def body(carry: list[Any], step: tuple[list[Any], States, Any]) -> tuple[list[Any], tuple[list[Any], States]]:
        slices, scanned, iteration = step
        here = index * params["length"] + iteration
        outputs, aux = evaluate(nested.plan, handler, fixed | scanned, [*constants, *carry, *slices], here)
        return outputs[:carries], (outputs[carries:], aux)

    steps = (slices, scanned, jnp.arange(params["length"]))
    carry, (stacked, aux) = lax.scan(
        body, carry, steps, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *stacked], {base: _merge_calls(nested, base, found) for base, found in aux.items()}


def _merge_calls(nested: Nested, base: str, aux: Any) -> Any:
    """The scan's axis of a site that it does not iterate joins that site's calls."""
    if base in nested.iterated:
        return aux
    site = next(site for site in nested.plan.sites() if site.base == base)
    inner = sum(level > nested.level for level in site.levels)  # axes of scans inside this one stand before the calls

    def join(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(leaf, 0, inner)
        return leaf.reshape(*leaf.shape[:inner], -1, *leaf.shape[inner + 2 :])

    return jax.tree.map(join, aux)


_NESTED: dict[str, Callable[..., tuple[list[Any], States]]] = {"jit": _run_jit, "remat": _run_remat, "scan": _run_scan}
