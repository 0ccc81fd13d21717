"""Which channel each element of a value belongs to, followed through a program and back to the parameters.

An *index* is an integer array with the rank of a value, and size 1 along axes over which the channel is the same: the
value's element belongs to the channel that the index, broadcast, has in its place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.graph.layer import Contraction
from qresearch.graph.program import Program, Step

Index: TypeAlias = np.ndarray

CASTS = ("convert_element_type", "copy", "copy_p", "reduce_precision", "name", "optimization_barrier")
MOVES = (*CASTS, "reshape", "transpose", "squeeze", "broadcast_in_dim", "rev")
ELEMENTWISE = ("mul", "div", "add", "sub", "add_any", "rsqrt", "sqrt", "neg", "exp", "max", "min", "square")


class Part(NamedTuple):
    """A parameter that takes the channels' scales: its position among the leaves of params, and its index."""

    leaf: int
    channel: Index


class StuckError(Exception):
    """Why a channel cannot be followed: never leaves this package's analyses."""


def place(index: Index, axes: Sequence[int], rank: int) -> Index:
    """An index over some axes as one over a value of that rank: ``axes`` says where each axis goes."""
    order = np.argsort(axes)
    shape = [1] * rank
    for axis in order:
        shape[axes[axis]] = index.shape[axis]
    return index.transpose(order).reshape(shape)


def kernel_channels(contraction: Contraction) -> tuple[Index, Index]:
    """(index of the kernel, index of the contraction's output) of all output channels, numbered as in the kernel."""
    axes, shape = contraction.channel_axes, contraction.weight_shape
    channels = np.arange(math.prod(shape[axis] for axis in axes)).reshape([shape[axis] for axis in axes])
    places, rank = _output_axes(contraction)
    return place(channels, axes, len(shape)), place(channels, places, rank)


def input_channels(contraction: Contraction, index: Index) -> Index:
    """The index of the kernel, given that of the input whose elements it meets. StuckError if the contraction does more
    than sum over the channels.
    """
    if contraction.kind == "conv_general_dilated":
        parameters = dict(contraction.parameters)
        numbers, groups = parameters["dimension_numbers"], contraction.feature_groups
        if index.size != index.shape[numbers.lhs_spec[1]] or parameters["batch_group_count"] != 1:
            raise StuckError("it is convolved over the axis of its channels")
        out, own = (contraction.weight_shape[axis] for axis in numbers.rhs_spec[:2])
        # An output channel of group g meets the channels from g * own on: with depthwise kernels one only.
        met = np.arange(out)[:, None] // (out // groups) * own + np.arange(own)
        return place(index.ravel()[met], numbers.rhs_spec[:2], len(contraction.weight_shape))
    contracting, batch = dict(contraction.parameters)["dimension_numbers"]
    side, other = contraction.weight_operand, 1 - contraction.weight_operand
    theirs, mine = (*contracting[other], *batch[other]), (*contracting[side], *batch[side])
    if index.size != math.prod(index.shape[axis] for axis in theirs):
        raise StuckError("its channels are not what the next layer sums over")
    order = (*theirs, *(axis for axis in range(index.ndim) if axis not in theirs))
    met = index.transpose(order).reshape([index.shape[axis] for axis in theirs])
    return place(met, mine, len(contraction.weight_shape))


def follow(step: Step, index: Index) -> Index:
    """The index after a step that only moves the elements of its first input. StuckError if it does more."""
    if step.name in CASTS:
        _check_cast(step)
        return index
    if step.name == "transpose":
        return index.transpose(step.params["permutation"])
    if step.name == "rev":
        return np.flip(index, tuple(step.params["dimensions"]))
    if step.name == "broadcast_in_dim":
        # An axis of size 1 that is stretched holds one channel: it stays 1.
        return place(index, step.params["broadcast_dimensions"], len(step.output_shape))
    if step.name in ("reshape", "squeeze"):
        return _reshape(index, step.shape(0), step.output_shape)
    raise StuckError(f"it is followed by '{step.name}'")


def pull_back(program: Program, number: int, index: Index) -> Part:
    """The parameter whose multiplication multiplies this value, and nothing else.

    Through moves, casts and products. StuckError where there is no such leaf.
    """
    if number in program.data:
        raise StuckError("it is added to other data")
    if program.uses[number] > 1:
        raise StuckError("a parameter is used more than once")
    if number in program.inputs[: program.leaves]:
        return Part(program.inputs.index(number), index)
    step = program.makers.get(number)
    if step is None:
        raise StuckError("it meets a value that no parameter makes")
    if step.name in MOVES:
        return pull_back(program, step.inputs[0], _before(step, index))
    if step.name in ("mul", "div", "neg"):
        for position in range(len(step.inputs) if step.name == "mul" else 1):
            try:
                return pull_back(program, step.inputs[position], restrict(index, step.shape(position)))
            except StuckError:
                continue
    raise StuckError("a parameter is part of a larger one, or computed from several")


def restrict(index: Index, shape: tuple[int, ...]) -> Index:
    """The index of an operand of an elementwise step, given the output's. StuckError if channels share an element."""
    if len(shape) != index.ndim or any(size == 1 < own for size, own in zip(shape, index.shape)):
        raise StuckError("a parameter is the same for several channels")
    return index


def varying_axes(program: Program, number: int, shape: tuple[int, ...]) -> set[int]:
    """The axes along which a value may differ, as far as broadcasts and elementwise operations tell."""
    step, varying = program.makers.get(number), {axis for axis, size in enumerate(shape) if size > 1}
    if step is None or len(step.outputs) > 1:
        return varying
    if step.name == "broadcast_in_dim":
        inner = varying_axes(program, step.inputs[0], step.shape(0))
        return {step.params["broadcast_dimensions"][axis] for axis in inner}
    if step.name in (*ELEMENTWISE, *CASTS):
        inputs = zip(step.inputs, map(step.shape, range(len(step.inputs))))
        return set().union(*(varying_axes(program, *operand) for operand in inputs)) & varying
    return varying


def scale_leaf(leaf: jax.Array, index: Index, factors: jax.Array) -> jax.Array:
    """A parameter with every element multiplied by the factor of its channel, in float32 at least."""
    return (leaf.astype(jnp.promote_types(leaf.dtype, factors.dtype)) * factors[index]).astype(leaf.dtype)


def _output_axes(contraction: Contraction) -> tuple[tuple[int, ...], int]:
    """Where the kernel's ``channel_axes`` are in the contraction's output, and the output's rank."""
    numbers = dict(contraction.parameters)["dimension_numbers"]
    if contraction.kind == "conv_general_dilated":
        return (numbers.out_spec[1],), len(contraction.weight_shape)
    own, (contracting, batch) = contraction.weight_operand, numbers
    free = [axis for axis in contraction.channel_axes if axis not in batch[own]]
    # The output's axes: batch, free ones of the left operand, free ones of the right.
    theirs = len(contraction.input_shape) - len(contracting[1 - own]) - len(batch[1 - own])
    first = len(batch[own]) + (theirs if own == 1 else 0)
    places = [
        list(batch[own]).index(axis) if axis in batch[own] else first + free.index(axis)
        for axis in contraction.channel_axes
    ]
    return tuple(places), len(batch[own]) + theirs + len(free)


def _before(step: Step, index: Index) -> Index:
    """The index of a move's input, given that of its output: the inverse of ``follow``."""
    if step.name in CASTS:
        _check_cast(step)
        return index
    if step.name == "transpose":
        return index.transpose(np.argsort(step.params["permutation"]))
    if step.name == "rev":
        return np.flip(index, tuple(step.params["dimensions"]))
    if step.name == "broadcast_in_dim":
        kept = [index.shape[axis] for axis in step.params["broadcast_dimensions"]]
        if math.prod(kept) != index.size or any(old == 1 < new for old, new in zip(step.shape(0), kept)):
            raise StuckError("a parameter is the same for several channels")
        return index.reshape(kept)
    return _reshape(index, step.output_shape, step.shape(0))


def _check_cast(step: Step) -> None:
    if len(step.outputs) > 1 or not jnp.issubdtype(step.equation.outvars[0].aval.dtype, jnp.floating):
        raise StuckError(f"it is followed by '{step.name}'")


def _reshape(index: Index, old: tuple[int, ...], new: tuple[int, ...]) -> Index:
    """The index after a reshape from old to new: only axes that are split or merged with the channels' are written
    out.
    """
    shape: list[int] = []
    full: list[int] = []
    for olds, news in _blocks(old, new):
        constant = all(index.shape[axis] == 1 for axis in olds)
        full += [1 if constant else old[axis] for axis in olds]
        shape += [1 if constant else new[axis] for axis in news]
    return np.broadcast_to(index, full).reshape(shape)


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The axes of both shapes in the smallest blocks of consecutive ones that hold the same elements."""
    blocks: list[tuple[list[int], list[int]]] = []
    cuts = [list(itertools.accumulate(shape, lambda a, b: a * b, initial=1)) for shape in (old, new)]
    i = j = 0
    while i < len(old) or j < len(new):
        olds, news = [], []
        if i < len(old):
            olds, i = [i], i + 1
        else:
            news, j = [j], j + 1
        while cuts[0][i] != cuts[1][j]:
            if cuts[0][i] < cuts[1][j]:
                olds, i = [*olds, i], i + 1
            else:
                news, j = [*news, j], j + 1
        blocks.append((olds, news))
    return blocks
