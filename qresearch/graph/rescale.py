"""Where a function has channels whose scale is free: dividing them at one place and multiplying at others changes
nothing.

Cross-layer equalization and SmoothQuant choose these scales. Found from the dataflow: a positive scale of one channel
passes through whatever is positively homogeneous (ReLU, pooling, sums, products with other values) up to the layers
that sum over the channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.graph.channels import (
    Index,
    Part,
    StuckError,
    input_channels,
    kernel_channels,
    place,
    pull_back,
    scale_leaf,
    varying_axes,
)
from qresearch.graph.homogeneous import after
from qresearch.graph.plan import Site
from qresearch.graph.program import Program, Shapes, Step, flatten, program_of
from qresearch.graph.trace import Function


class Consumer(NamedTuple):
    """A layer that sums over the channels. input: the index of its input."""

    site: Site
    kernel: Part
    input: Index


@dataclass(frozen=True, eq=False)
class Freedom:
    """``channels`` scales that may be chosen: ``divided`` and ``shifts`` by them, the consumers' kernels multiplied.

    divided: the kernel of the layer, or the factor (such as a LayerNorm's scale), that makes the channels; layer: its
    site, None for a factor. shifts: what is added to the channels on their way, such as biases. If the channels cannot
    be scaled, ``why_not`` says why, and there are no consumers.
    """

    layer: Site | None
    channels: int
    divided: Part | None
    shifts: tuple[Part, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    why_not: str = ""


def freedoms(program: Program) -> list[Freedom]:
    """Those of every layer outside scans, and of every product of data with a parameter that varies over channels.

    program: with the rules inlined (``flatten``).
    """
    found = []
    for position, step in enumerate(program.steps):
        if step.site is not None:
            kernel, output = kernel_channels(step.site.contraction)
            operand = step.inputs[step.site.contraction.weight_operand]
            found.append(_freedom(program, position, step.site, operand, kernel, output))
        elif step.name == "mul" and len({number in program.data for number in step.inputs}) == 2:
            factor = next(i for i, number in enumerate(step.inputs) if number not in program.data)
            axes = sorted(varying_axes(program, step.inputs[factor], step.shape(factor)))
            sizes = [step.shape(factor)[axis] for axis in axes]
            index = place(np.arange(math.prod(sizes)).reshape(sizes), axes, len(step.output_shape))
            if axes:
                found.append(_freedom(program, position, None, step.inputs[factor], index, index))
    return found


def find_freedoms(fn: Function, params: Any, x: Any) -> list[Freedom]:
    """``freedoms`` of fn(params, x), whose arguments may be shapes. The leaves of a part are those of params."""
    graph, _ = program_of(fn, Shapes(params), Shapes(x))
    return freedoms(flatten(graph.plan, len(jax.tree.leaves(params)), rules=True))


def rescale(leaves: Sequence[Array], freedom: Freedom, factors: Float[Array, "channels"]) -> list[Array]:
    """The leaves of params with the channels divided by these factors where they are made, and multiplied where they
    are summed over.
    """
    changed = list(leaves)
    divided = () if freedom.divided is None else (freedom.divided, *freedom.shifts)
    for part, own in (*((d, 1 / factors) for d in divided), *((c.kernel, factors) for c in freedom.consumers)):
        changed[part.leaf] = scale_leaf(changed[part.leaf], part.channel, own)
    return changed


def largest(array: Array, index: Index, channels: int) -> Float[Array, "channels"]:
    """The largest absolute value of every channel."""
    own = jnp.abs(array).max([axis for axis, size in enumerate(index.shape) if size == 1], keepdims=True)
    return jax.ops.segment_max(own.astype(jnp.float32).ravel(), jnp.asarray(index.ravel()), channels)


def _freedom(program: Program, position: int, site: Site | None, operand: int, kernel: Index, output: Index) -> Freedom:
    try:
        divided = pull_back(program, operand, kernel)
        shifts, consumers = _forward(program, position, output)
        return Freedom(site, output.size, divided, shifts, consumers)
    except StuckError as stuck:
        return Freedom(site, output.size, None, why_not=str(stuck))


def _forward(program: Program, position: int, output: Index) -> tuple[tuple[Part, ...], tuple[Consumer, ...]]:
    """What takes the scales of the channels that the step at this position makes. StuckError if anything else does."""
    scaled = {program.steps[position].outputs[0]: output}
    shifts: list[Part] = []
    consumers: list[Consumer] = []
    for step in program.steps[position + 1 :]:
        indices = [scaled.get(number) for number in step.inputs]
        if all(index is None for index in indices):
            continue
        if step.site is not None:
            consumers.append(_consumer(program, step, indices))
            continue
        scaled.update(zip(step.outputs, after(program, step, indices, shifts)))
    if not scaled.keys().isdisjoint(program.outputs):
        raise StuckError("it reaches the function's output")
    if not consumers:
        raise StuckError("no layer follows")
    return tuple(shifts), tuple(consumers)


def _consumer(program: Program, step: Step, indices: list[Index | None]) -> Consumer:
    assert step.site is not None
    operand = step.site.contraction.weight_operand
    index = indices[1 - operand]
    assert index is not None  # a kernel is made of parameters alone
    kernel = input_channels(step.site.contraction, index)
    return Consumer(step.site, pull_back(program, step.inputs[operand], kernel), index)
