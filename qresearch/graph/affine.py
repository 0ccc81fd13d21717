"""Affine tails: per-channel scales and shifts, computed from parameters, that follow a contraction.

BatchNorm with running statistics is one: gamma (y - mean) / sqrt(var + eps) + beta. Found from the dataflow, whatever
the module that wrote it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from qresearch.graph.channels import MOVES, Index, StuckError, follow, kernel_channels, pull_back, varying_axes
from qresearch.graph.plan import Site
from qresearch.graph.program import Program, Step, evaluate_values

SCALES = ("mul", "div")
SHIFTS = ("add", "sub", "add_any")


@dataclass(frozen=True, eq=False)
class Operation:
    """One step of a tail, from the value ``previous`` to ``output``. operand: the number of the value that depends on
    parameters alone, None for ``neg``. left: it is the first operand. index: of the layer's output at this point.
    """

    name: str
    operand: int | None
    left: bool
    index: Index
    output: int
    previous: int


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows a layer. operations: the affine ones; end: why there are no more of them.

    leaf: the position of the kernel's parameter among the leaves of params; None where it cannot be changed, and
    ``why_not`` says why. kernel, output: the indices of that leaf and of the layer's output, channels numbered as in
    the kernel.
    """

    site: Site
    operations: tuple[Operation, ...]
    end: str
    output: Index
    leaf: int | None
    kernel: Index
    why_not: str = ""


def affine_tails(program: Program) -> list[Tail]:
    """The tails of all layers outside scans."""
    readers = {number: step for step in program.steps for number in step.inputs}
    return [_tail(step, step.site, program, readers) for step in program.steps if step.site is not None]


def scales(tail: Tail, program: Program) -> bool:
    """Whether a parameter, or an array, scales the layer's output: a factor that is but a number of the code does not
    count.
    """
    varying = program.after(program.inputs[: program.leaves])
    return any(
        operation.name in SCALES
        and (operation.operand in varying or jnp.size(program.constants.get(operation.operand or -1, 0.0)) > 1)
        for operation in tail.operations
    )


def coefficients(tail: Tail, program: Program, parameters: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
    """(a, b) of a tail a y + b: [channels], numbered as in the kernel, at least float32."""
    known = dict(zip(program.inputs, parameters))
    values = evaluate_values(program, {op.operand for op in tail.operations if op.operand is not None}, known)
    a, b = jnp.ones(tail.output.size, jnp.float32), jnp.zeros(tail.output.size, jnp.float32)
    for operation in tail.operations:
        if operation.operand is None:
            a, b = -a, -b
        else:
            operand = _per_channel(jnp.asarray(values[operation.operand]), operation.index)
            a, b = _apply(operation, operand, a, b)
    return a, b


def other_scales(program: Program, tails: Collection[Tail]) -> dict[int, str]:
    """What data is scaled by, channel by channel, in no operation of these tails: {position of the parameter's leaf:
    what stands before}. Of several scales on end the last.
    """
    own = {operation.output for tail in tails for operation in tail.operations}
    found: dict[int, tuple[int, str]] = {}
    for step in program.steps:
        given = [position for position, number in enumerate(step.inputs) if number in program.data]
        if step.name not in SCALES or given not in ([0], [1]) or step.outputs[0] in own:
            continue
        factor = 1 - given[0]
        leaves = _leaves(program, step.inputs[factor])
        if leaves and varying_axes(program, step.inputs[factor], step.shape(factor)):
            passed, reason = _before(program, step.inputs[given[0]])
            found = {number: one for number, one in found.items() if number not in passed}
            found[step.outputs[0]] = leaves[-1], reason
    return dict(found.values())


def _leaves(program: Program, number: int) -> list[int]:
    """The positions of the parameters that a value is computed from."""
    wanted = {number}
    for step in reversed(program.steps):
        if not wanted.isdisjoint(step.outputs):
            wanted.update(step.inputs)
    return [position for position in range(program.leaves) if program.inputs[position] in wanted]


def _before(program: Program, number: int) -> tuple[set[int], str]:
    """The values before this one that are scaled, shifted and moved to make it, and what makes the first."""
    passed = {number}
    while True:
        step = program.makers.get(number)
        if step is None:
            return passed, "it scales an input"
        if step.site is not None:
            return passed, f"it follows {step.site.base}, which cannot take it"
        data = [own for own in step.inputs if own in program.data]
        if step.name not in (*SCALES, *SHIFTS, *MOVES) or len(data) != 1:
            return passed, f"it follows '{step.name}', not a layer"
        (number,) = data
        passed.add(number)


def _tail(start: Step, site: Site, program: Program, readers: dict[int, Step]) -> Tail:
    kernel, output = kernel_channels(site.contraction)
    current, index, end = start.outputs[0], output, ""
    operations: list[Operation] = []
    while not end:
        if program.uses[current] != 1 or current not in readers:
            end = "its output is the function's" if current in program.outputs else "its output is used more than once"
            break
        reader = readers[current]
        found = _operation(reader, current, index, program)
        try:
            if found is not None:
                operations.append(found)
            else:
                index = follow(reader, index)
            if index.size != output.size:
                end = f"its channels are merged with other axes by '{reader.name}'"
        except StuckError as stuck:
            end = str(stuck)
        current = reader.outputs[0]
    try:
        leaf, kernel = pull_back(program, start.inputs[site.contraction.weight_operand], kernel)
    except StuckError as stuck:
        return Tail(site, tuple(operations), end, output, None, kernel, f"its kernel cannot be changed: {stuck}")
    return Tail(site, tuple(operations), end, output, leaf, kernel)


def _operation(step: Step, current: int, index: Index, program: Program) -> Operation | None:
    """The step as an affine operation on the value ``current``; None if it is not one."""
    if step.name == "neg":
        return Operation("neg", None, False, index, step.outputs[0], current)
    if step.name not in (*SCALES, *SHIFTS):
        return None
    position = step.inputs.index(current)
    operand, shape = step.inputs[1 - position], step.shape(1 - position)
    divides = step.name == "div" and position == 1
    if operand in program.data or divides or step.shape(position) != step.output_shape:
        return None
    if any(index.shape[axis] == 1 for axis in varying_axes(program, operand, shape)):
        return None
    return Operation(step.name, operand, position == 1, index, step.outputs[0], current)


def _apply(operation: Operation, operand: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    if operation.name == "mul":
        return a * operand, b * operand
    if operation.name == "div":
        return a / operand, b / operand
    if operation.name != "sub":
        return a, b + operand
    return (-a, operand - b) if operation.left else (a, b - operand)


def _per_channel(operand: jax.Array, index: Index) -> jax.Array:
    """What each channel meets in an operand that varies along the channels' axes at most: [channels]."""
    wide = operand.astype(jnp.promote_types(operand.dtype, jnp.float32))
    if wide.ndim:
        wide = wide[tuple(slice(None) if size > 1 else slice(1) for size in index.shape)]
    return jnp.zeros(index.size, wide.dtype).at[index.ravel()].set(jnp.broadcast_to(wide, index.shape).ravel())
