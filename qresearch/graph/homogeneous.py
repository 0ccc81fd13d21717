"""What positively homogeneous steps do to channels that are scaled: f(s x) = s f(x), channel by channel.

To let scales through one more primitive, write its rule, and add its line to ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qresearch.graph.channels import MOVES, Index, Part, StuckError, follow, place, pull_back, restrict
from qresearch.graph.program import Program, Step


def after(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> list[Index]:
    """The indices of a step's outputs, none if the scales do not change it; ``shifts`` grows by what is divided."""
    if step.name in COMPARISONS:
        _same(program, step, indices, shifts)
        return []
    if step.name in MOVES:
        assert indices[0] is not None
        return [follow(step, indices[0])]
    if step.name == "split":
        return _split(_common(step, indices), step.params["axis"], step.params["sizes"])
    if step.name not in RULES:
        raise StuckError(f"it is followed by '{step.name}'")
    return [RULES[step.name](program, step, indices, shifts)]


def _common(step: Step, indices: list[Index | None]) -> Index:
    """The index that all scaled inputs share."""
    found = [index for index in indices if index is not None]
    if not all(np.array_equal(index, found[0]) for index in found):
        raise StuckError(f"it meets other channels in '{step.name}'")
    return found[0]


def _scaled_or_zero(program: Program, step: Step, indices: list[Index | None]) -> list[bool]:
    return [index is not None or program.is_zero(n) for index, n in zip(indices, step.inputs)]


def _same(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    """max(x, 0), |x|, a choice by a condition: homogeneous in all inputs together."""
    chosen = _scaled_or_zero(program, step, indices)
    if not all(chosen[1:] if step.name == "select_n" else chosen):
        raise StuckError(f"it meets a value that is not scaled with it in '{step.name}'")
    return _common(step, indices)


def _sum(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    """x + b: a parameter b takes the scales; data does not."""
    index = _common(step, indices)
    for position, number in enumerate(step.inputs):
        if indices[position] is None and not program.is_zero(number):
            shifts.append(pull_back(program, number, restrict(index, step.shape(position))))
    return index


def _product(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    """x times, or over, anything that is not scaled."""
    if all(index is not None for index in indices) or (step.name == "div" and indices[0] is None):
        raise StuckError(f"it is not homogeneous: '{step.name}'")
    return _common(step, indices)


def _reduce(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    index, axes = _common(step, indices), step.params["axes"]
    if any(index.shape[axis] > 1 for axis in axes):
        raise StuckError(f"its channels are merged by '{step.name}'")
    return index.squeeze(tuple(axes))


def _window(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    index, params = _common(step, indices), step.params
    for axis, size in enumerate(index.shape):
        alone = (
            params["window_dimensions"][axis] == params["window_strides"][axis] == params["base_dilation"][axis] == 1
        )
        if size > 1 and (not alone or tuple(params["padding"][axis]) != (0, 0)):
            raise StuckError(f"its channels are merged by '{step.name}'")
    return index


def _slice(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    params = step.params
    bounds = zip(params["start_indices"], params["limit_indices"], params["strides"] or (1,) * len(step.output_shape))
    index = _common(step, indices)
    return index[tuple(slice(*own) if size > 1 else slice(None) for own, size in zip(bounds, index.shape))]


def _split(index: Index, axis: int, sizes: Sequence[int]) -> list[Index]:
    if index.shape[axis] == 1:
        return [index] * len(sizes)
    return np.split(index, np.cumsum(sizes)[:-1], axis)


def _concatenate(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    """Of the same channels along another axis, or of channels; zeros may stand among them."""
    if not all(_scaled_or_zero(program, step, indices)):
        raise StuckError("it meets a value that is not scaled with it in 'concatenate'")
    axis, found = step.params["dimension"], [index for index in indices if index is not None]
    if found[0].shape[axis] == 1 and all(np.array_equal(index, found[0]) for index in found):
        return found[0]
    some = [
        np.zeros((1,) * found[0].ndim, int) if index is None else index for index in indices
    ]  # zeros fit any channel
    shape = np.broadcast_shapes(*(index.take([0], axis).shape for index in some))
    parts = [
        np.broadcast_to(index, (*shape[:axis], step.shape(position)[axis], *shape[axis + 1 :]))
        for position, index in enumerate(some)
    ]
    return np.concatenate(parts, axis)


def _pad(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    index = _common(step, indices)
    padded = [tuple(config) != (0, 0, 0) for config in step.params["padding_config"]]
    if not program.is_zero(step.inputs[1]) or any(size > 1 and own for size, own in zip(index.shape, padded)):
        raise StuckError("it is padded by something else than zeros, or along its channels")
    return index


def _dot(program: Program, step: Step, indices: list[Index | None], shifts: list[Part]) -> Index:
    """A contraction with data, such as attention's with its values: linear, so the channels only move."""
    index = _common(step, indices)
    side = 0 if indices[0] is not None else 1
    contracting, batch = step.params["dimension_numbers"]
    if indices[1 - side] is not None or any(index.shape[axis] > 1 for axis in contracting[side]):
        raise StuckError("its channels are summed over with data")
    free = [axis for axis in range(index.ndim) if axis not in (*contracting[side], *batch[side])]
    kept, rank = (*batch[side], *free), len(step.output_shape)
    first = len(batch[0]) if side == 0 else rank - len(free)
    moved = index.transpose((*kept, *contracting[side])).reshape([index.shape[axis] for axis in kept])
    return place(moved, (*range(len(batch[0])), *range(first, first + len(free))), rank)


COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne", "sign")
RULES: dict[str, Callable[[Program, Step, list[Index | None], list[Part]], Index]] = {
    **dict.fromkeys(("max", "min", "abs", "neg", "select_n"), _same),
    **dict.fromkeys(("add", "sub", "add_any"), _sum),
    **dict.fromkeys(("mul", "div"), _product),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduce),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "slice": _slice,
    "concatenate": _concatenate,
    "pad": _pad,
    "dot_general": _dot,
}
