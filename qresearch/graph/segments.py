"""Segments: stretches of a function between values that all of the data passes through, such as residual blocks.

What is reconstructed one after the other (BRECQ's blocks) is a segment: a function of parameters and one value.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import jax

from qresearch.compat import is_dropped, is_literal
from qresearch.graph.interpreter import Handler, States, execute, read
from qresearch.graph.plan import Nested, Plan
from qresearch.graph.trace import Graph, layer_names, stack_states, unstack_aux


@dataclass(frozen=True, eq=False)
class Segment:
    """The equations that lead from one value (for the first segment from x) to the next, and their layers' names.

    plan: the whole jaxpr, with the entries of this segment only. The last segment's value is what the function returns.
    """

    plan: Plan
    positions: tuple[int, ...]
    arguments: tuple[tuple[Any, int], ...]  # the parameter variables it uses, and which leaf of params each is
    sources: tuple[Any, ...]
    targets: tuple[Any, ...]
    layers: tuple[str, ...]
    output_tree: Any  # None but for the last

    def run(self, handler: Handler, params: Any, value: Any, states: States | None = None) -> tuple[Any, States]:
        """(the value at the end, aux by layer name): as ``Graph.run``, from the value at the segment's start."""
        return self.run_on(handler, self.parameters(params), value, states)

    def parameters(self, params: Any) -> list[Any]:
        """The leaves of params that the segment uses."""
        leaves = jax.tree.leaves(params)
        return [leaves[i] for _, i in self.arguments]

    def run_on(
        self, handler: Handler, parameters: list[Any], value: Any, states: States | None = None
    ) -> tuple[Any, States]:
        """``run`` with ``parameters`` of its own, so that segments alike take arguments alike."""
        jaxpr = self.plan.jaxpr
        values = dict(zip(jaxpr.constvars, self.plan.consts))
        values |= {var: leaf for (var, _), leaf in zip(self.arguments, parameters, strict=True)}
        values |= dict(zip(self.sources, jax.tree.leaves(value)))
        aux = execute(self.plan, self.positions, handler, stack_states(self.plan, states or {}), values)
        outputs = [read(atom, values) for atom in self.targets]
        result = outputs[0] if self.output_tree is None else jax.tree.unflatten(self.output_tree, outputs)
        return result, unstack_aux(self.plan, aux)


def segments(graph: Graph, params: Any) -> tuple[Segment, ...]:
    """The function cut wherever a single value carries on, between any two layers: each segment has a layer.

    A cut lies as late as it can: normalisation and activation belong to the layer before them. What jit, remat or scan
    wrap is one equation and not cut, but for a jit around the whole function. The segments, run in turn, are the
    function.
    """
    return _segments(graph, len(jax.tree.leaves(params)))


@functools.lru_cache(maxsize=16)
def _segments(graph: Graph, count: int) -> tuple[Segment, ...]:
    plan, arguments = _body(graph.plan)
    inputs = [var for var, index in arguments if index >= count]
    cuts = _cuts(plan, set(inputs))
    layered = sorted(plan.entries)
    ends: list[tuple[int, Any]] = []  # after which equation, and the value there
    for before, after in itertools.pairwise(layered):
        between = [end for end in cuts if before <= end < after]
        if between:
            ends.append((between[-1], cuts[between[-1]]))
    starts = [tuple(inputs), *((value,) for _, value in ends)]
    targets = [*((value,) for _, value in ends), tuple(plan.jaxpr.outvars)]
    own = tuple((var, index) for var, index in arguments if index < count)
    trees = [None] * len(ends) + [graph.output_tree]
    return tuple(_segment(plan, own, *parts) for parts in zip(starts, targets, trees))


def _body(plan: Plan) -> tuple[Plan, list[tuple[Any, int]]]:
    """The plan to cut, and which argument of the function each of its inputs is: inside a jit around the whole."""
    entry = plan.entries.get(0)
    if len(plan.jaxpr.eqns) == 1 and isinstance(entry, Nested) and entry.kind == "jit":
        equation, places = plan.jaxpr.eqns[0], {var: i for i, var in enumerate(plan.jaxpr.invars)}
        given = zip(entry.plan.jaxpr.invars, equation.invars)
        if list(equation.outvars) == list(plan.jaxpr.outvars) and all(not is_literal(atom) for atom in equation.invars):
            return entry.plan, [(inner, places[outer]) for inner, outer in given]
    return plan, [(var, i) for i, var in enumerate(plan.jaxpr.invars)]


def _cuts(plan: Plan, data: set[Any]) -> dict[int, Any]:
    """After which equations one value alone depends on the data and is still needed: {position: that value}."""
    last: dict[Any, int] = {}
    for position, equation in enumerate(plan.jaxpr.eqns):
        last |= {atom: position for atom in equation.invars if not is_literal(atom)}
    last |= {atom: len(plan.jaxpr.eqns) for atom in plan.jaxpr.outvars if not is_literal(atom)}
    live, found = {var for var in data if var in last}, {}
    for position, equation in enumerate(plan.jaxpr.eqns):
        if any(not is_literal(atom) and atom in data for atom in equation.invars):
            made = {var for var in equation.outvars if not is_dropped(var)}
            data = data | made
            live |= {var for var in made if var in last}
        live = {var for var in live if last[var] > position}
        if len(live) == 1:
            found[position] = next(iter(live))
    return found


def _segment(
    plan: Plan, arguments: tuple[tuple[Any, int], ...], sources: tuple[Any, ...], targets: tuple[Any, ...], tree: Any
) -> Segment:
    """All equations that the targets need, back to the sources and to the parameters."""
    wanted, positions = {atom for atom in targets if not is_literal(atom)}, []
    for position in reversed(range(len(plan.jaxpr.eqns))):
        equation = plan.jaxpr.eqns[position]
        if wanted.intersection(var for var in equation.outvars if not is_dropped(var)):
            positions.append(position)
            wanted |= {atom for atom in equation.invars if not is_literal(atom) and atom not in sources}
    positions.reverse()
    own = Plan(plan.jaxpr, plan.consts, {i: plan.entries[i] for i in positions if i in plan.entries})
    layers = tuple(name for site in own.sites() for name in layer_names(site))
    used = tuple(argument for argument in arguments if argument[0] in wanted)
    return Segment(own, tuple(positions), used, sources, targets, layers, tree)
