"""A traced function as one list of steps, with functions under jit and remat inlined and values as numbers.

Transformations of a model (folding, equalization) are found and made on this form.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from qresearch.compat import evaluate_equation, is_literal, open_jaxpr
from qresearch.graph.discover import JIT, REMAT
from qresearch.graph.plan import Nested, Plan, Site
from qresearch.graph.trace import Function, Graph, trace

RULES = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}  # such as jax.nn.relu
WRAPPERS = dict.fromkeys((*JIT, *REMAT), "jaxpr")


@dataclass(frozen=True, eq=False)
class Step:
    """One equation, with the numbers of the values it reads and writes. site: the layer it is."""

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    site: Site | None = None

    @property
    def name(self) -> str:
        """The primitive's."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """The primitive's."""
        return self.equation.params

    def shape(self, position: int) -> tuple[int, ...]:
        """The shape of an input."""
        return tuple(self.equation.invars[position].aval.shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return tuple(self.equation.outvars[0].aval.shape)


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in order of execution. inputs, outputs: the numbers of fn's arguments' and results' leaves.

    leaves: how many of the inputs are parameters; the others are data.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]
    constants: dict[int, Any]
    leaves: int

    @functools.cached_property
    def uses(self) -> collections.Counter[int]:
        """How often each value is read, by steps or as an output."""
        read = itertools.chain.from_iterable(step.inputs for step in self.steps)
        return collections.Counter(itertools.chain(read, self.outputs))

    @functools.cached_property
    def makers(self) -> dict[int, Step]:
        """The step that writes each value."""
        return {output: step for step in self.steps for output in step.outputs}

    @functools.cached_property
    def data(self) -> set[int]:
        """The values that depend on the inputs other than parameters."""
        return self.after(self.inputs[self.leaves :])

    def after(self, sources: Collection[int]) -> set[int]:
        """The values that depend on any of these, themselves included."""
        found = set(sources)
        for step in self.steps:
            if not found.isdisjoint(step.inputs):
                found.update(step.outputs)
        return found

    def is_zero(self, number: int) -> bool:
        """Whether a value is a constant zero."""
        step = self.makers.get(number)
        if step is not None and step.name in ("broadcast_in_dim", "convert_element_type"):
            return self.is_zero(step.inputs[0])
        return number in self.constants and not np.any(np.asarray(self.constants[number]))


class Shapes:
    """Shapes and dtypes of a pytree, hashable: what a trace depends on."""

    def __init__(self, tree: Any) -> None:
        leaves, self.structure = jax.tree.flatten(tree)
        avals = [leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf) for leaf in leaves]
        self.leaves = tuple((aval.shape, aval.dtype, bool(aval.weak_type)) for aval in avals)

    @property
    def tree(self) -> Any:
        """The pytree, with ``jax.ShapeDtypeStruct`` for leaves."""
        leaves = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in self.leaves]
        return jax.tree.unflatten(self.structure, leaves)

    def __hash__(self) -> int:
        return hash((self.structure, self.leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shapes) and (self.structure, self.leaves) == (other.structure, other.leaves)


@functools.lru_cache(maxsize=64)
def program_of(fn: Function, params: Shapes, x: Shapes) -> tuple[Graph, Program]:
    """The graph of fn(params, x) and its program, to be run: functions with a derivative of their own stay whole."""
    graph = trace(fn, params.tree, x.tree)
    return graph, flatten(graph.plan, len(params.leaves))


def flatten(plan: Plan, leaves: int, rules: bool = False) -> Program:
    """The program of a plan, whose first inputs, ``leaves`` of them, are parameters.

    rules: functions with a derivative of their own are inlined too, to see what they compute; the derivative is lost.
    """
    fresh, constants, inline = itertools.count(), dict[int, Any](), WRAPPERS | (RULES if rules else {})

    def constant(value: Any) -> int:
        number = next(fresh)
        constants[number] = value
        return number

    def block(plan: Plan, inputs: Sequence[int]) -> tuple[list[Step], tuple[int, ...]]:
        known = dict(zip(plan.jaxpr.invars, inputs))
        known |= {variable: constant(value) for variable, value in zip(plan.jaxpr.constvars, plan.consts)}

        def number_of(atom: Any) -> int:
            return constant(atom.val) if is_literal(atom) else known[atom]

        steps: list[Step] = []
        for index, equation in enumerate(plan.jaxpr.eqns):
            arguments, entry = tuple(map(number_of, equation.invars)), plan.entries.get(index)
            inner = inline.get(equation.primitive.name)
            if inner is not None:
                own = entry.plan if isinstance(entry, Nested) else Plan(*open_jaxpr(equation.params[inner]))
                body, outputs = block(own, arguments)
                steps += body
            else:
                outputs = tuple(next(fresh) for _ in equation.outvars)
                steps.append(Step(equation, arguments, outputs, entry if isinstance(entry, Site) else None))
            known.update(zip(equation.outvars, outputs))
        return steps, tuple(map(number_of, plan.jaxpr.outvars))

    inputs = tuple(next(fresh) for _ in plan.jaxpr.invars)
    steps, outputs = block(plan, inputs)
    return Program(inputs, outputs, tuple(steps), constants, leaves)


def without(program: Program, aliases: Mapping[int, int]) -> Program:
    """The program without the steps that write these values; who reads one reads its alias instead. What nobody reads
    any more is gone as well.
    """

    def final(number: int) -> int:
        while number in aliases:
            number = aliases[number]
        return number

    kept = [
        replace(step, inputs=tuple(map(final, step.inputs)))
        for step in program.steps
        if aliases.keys().isdisjoint(step.outputs)
    ]
    outputs = tuple(map(final, program.outputs))
    return replace(program, steps=tuple(_needed(kept, set(outputs))), outputs=outputs)


def execute(program: Program, arguments: Sequence[Any], shifts: Mapping[str, Any]) -> list[Any]:
    """The program's outputs. shifts: what is added to the output of the layers of these names."""
    values = program.constants | dict(zip(program.inputs, arguments))
    for step in program.steps:
        outputs = evaluate_equation(step.equation, [values[number] for number in step.inputs])
        if step.site is not None and step.site.base in shifts:
            outputs = [outputs[0] + shifts[step.site.base].astype(outputs[0].dtype)]
        values.update(zip(step.outputs, outputs))
    return [values[number] for number in program.outputs]


def evaluate_values(program: Program, numbers: Collection[int], known: Mapping[int, Any]) -> dict[int, Any]:
    """These values, from the ``known`` ones; only what they need is run."""
    values = program.constants | dict(known)
    for step in _needed(program.steps, set(numbers) - values.keys()):
        values.update(zip(step.outputs, evaluate_equation(step.equation, [values[i] for i in step.inputs])))
    return {number: values[number] for number in numbers}


def _needed(steps: Sequence[Step], wanted: set[int]) -> list[Step]:
    """The steps that make a wanted value, in order. ``wanted`` grows by what they read."""
    kept: list[Step] = []
    for step in reversed(steps):
        if not wanted.isdisjoint(step.outputs):
            wanted.update(step.inputs)
            kept.append(step)
    return kept[::-1]
