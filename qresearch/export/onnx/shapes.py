"""Primitives that move elements: reshaping, slicing, joining, looking up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qresearch.errors import GraphError
from qresearch.export.onnx.builder import Builder, Lazy, Tensor, Value, common_layout, plain
from qresearch.export.onnx.elementwise import tensor_type


def transpose(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Nothing is written: the axes have other names."""
    (value,), order = values, tuple(equation.params["permutation"])
    assert not isinstance(value, np.ndarray)
    if isinstance(value, Lazy):
        return Lazy(lambda layout: value.make(tuple(order[axis] for axis in layout)), _renamed(value.layout, order))
    return Tensor(value.name, _renamed(value.layout, order))


def reshape(b: Builder, equation: Any, values: list[Value]) -> Value:
    """In row-major order."""
    shape = equation.outvars[0].aval.shape
    return Tensor(b.reshape(b.named(values[0]), shape), plain(len(shape)))


def broadcast(b: Builder, equation: Any, values: list[Value]) -> Value:
    """``broadcast_in_dim``: axes of one element come in between, then they are expanded."""
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    placed = dict(zip(equation.params["broadcast_dimensions"], old))
    shape = [placed.get(axis, 1) for axis in range(len(new))]
    name = b.named(values[0])
    if len(shape) != len(old):
        missing = [axis for axis in range(len(new)) if axis not in placed]
        name = b.node("Unsqueeze", name, b.integers(missing))
    if any(have != want for have, want in zip(shape, new)):
        name = b.node("Expand", name, b.shape(new))
    return Tensor(name, plain(len(new)))


def dimension(b: Builder, equation: Any, values: list[Value]) -> Value:
    """``dim_as_value``: a number that depends on the size of the batch, as in a mean over examples."""
    name = b.node("Squeeze", b.dimension(equation.params["dim"]))
    return Tensor(b.node("Cast", name, to=tensor_type(equation.outvars[0].aval.dtype)), ())


def squeeze(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Drops axes of one element."""
    name = b.node("Squeeze", b.named(values[0]), b.integers(equation.params["dimensions"]))
    return Tensor(name, plain(len(equation.outvars[0].aval.shape)))


def slice_(b: Builder, equation: Any, values: list[Value]) -> Value:
    """A static slice; an axis that is taken whole may be of any length."""
    shape, params = equation.invars[0].aval.shape, equation.params
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(shape)
    cut = [
        (axis, start, limit, step)
        for axis, (start, limit, step) in enumerate(zip(starts, limits, steps))
        if (start, step) != (0, 1) or limit != shape[axis]
    ]
    return take_slices(b, values[0], len(shape), cut)


def take_slices(b: Builder, value: Value, rank: int, cut: Sequence[tuple[Any, Any, Any, Any]]) -> Value:
    """The value cut to (axis, start, limit, step) of some axes."""
    if not cut:
        return value
    if not all(isinstance(bound, int | np.integer) for _, *bounds in cut for bound in bounds):
        raise GraphError("a slice that depends on the size of the batch is not written to ONNX")
    layout = common_layout([value], rank)
    axes, starts, limits, steps = zip(*cut)
    places = [layout.index(axis) for axis in axes]
    inputs = map(b.integers, (starts, limits, places, steps))
    return Tensor(b.node("Slice", b.named(value, layout), *inputs), layout)


def pad(b: Builder, equation: Any, values: list[Value]) -> Value:
    """With a constant; negative padding cuts."""
    config = equation.params["padding_config"]
    if any(interior for _, _, interior in config):
        raise GraphError("padding between elements is not written to ONNX")
    layout = common_layout(values[:1], len(config))
    low, high = ([int(config[axis][side]) for axis in layout] for side in (0, 1))
    inputs = b.named(values[0], layout), b.integers([*low, *high]), b.named(values[1])
    return Tensor(b.node("Pad", *inputs, mode="constant"), layout)


def concatenate(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Along one axis."""
    layout = common_layout(values, len(equation.outvars[0].aval.shape))
    names = [b.named(value, layout) for value in values]
    return Tensor(b.node("Concat", *names, axis=layout.index(equation.params["dimension"])), layout)


def split(b: Builder, equation: Any, values: list[Value]) -> list[Value]:
    """Into parts along one axis."""
    layout = common_layout(values, len(equation.invars[0].aval.shape))
    sizes = [int(size) for size in equation.params["sizes"]]
    names = b.split(b.named(values[0], layout), sizes, layout.index(equation.params["axis"]))
    return [Tensor(name, layout) for name in names]


def gather(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Entries along one axis at any indices (``jnp.take``); or at constant ones a grid of them, such as every second
    pixel (``x[:, ::2, ::2]`` of a batch of any size is traced to that).

    An index past the end is refused by ONNX Runtime, where JAX gives NaN.
    """
    numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    if isinstance(values[1], np.ndarray):
        return _grid(b, equation, values[0], values[1])
    (axis, *more), rank = numbers.start_index_map, len(equation.invars[1].aval.shape) - 1
    whole = tuple(size if i != axis else 1 for i, size in enumerate(shape))
    kept = (*range(axis), *range(axis + rank, rank + len(shape) - 1))
    whole_entries = tuple(equation.params["slice_sizes"]) == whole and numbers.offset_dims == kept
    if more or tuple(numbers.collapsed_slice_dims) != (axis,) or not whole_entries:
        raise GraphError("this look-up is not written to ONNX: expected whole entries along one axis, as of jnp.take")
    indices = b.node("Squeeze", b.named(values[1]), b.integers([rank]))
    return Tensor(b.node("Gather", b.named(values[0]), indices, axis=axis), plain(len(equation.outvars[0].aval.shape)))


def _grid(b: Builder, equation: Any, value: Value, indices: np.ndarray) -> Value:
    """A gather whose constant indices are a grid: along every axis the same ones wherever the others are."""
    numbers, shape = equation.params["dimension_numbers"], equation.invars[0].aval.shape
    sizes, collapsed = equation.params["slice_sizes"], tuple(numbers.collapsed_slice_dims)
    free = [axis for axis in range(indices.ndim - 1) if indices.shape[axis] == 1]  # of the indices, where none varies
    made: dict[int, int] = {}  # by axis of the indices, the axis that it runs along
    for column, axis in enumerate(numbers.start_index_map):
        # JAX moves a window that does not fit.
        places = np.clip(indices[..., column], 0, shape[axis] - sizes[axis])
        varies = [i for i in range(places.ndim) if np.any(np.diff(places, axis=i))]
        if len(varies) > 1 or (varies and (axis not in collapsed or varies[0] in made)):
            raise GraphError("this look-up is not written to ONNX: its constant indices are no grid")
        found = (
            np.moveaxis(places, varies[0], -1).reshape(-1, places.shape[varies[0]])[0] if varies else places.ravel()[:1]
        )
        value = _taken(b, value, shape, axis, found if axis in collapsed else np.arange(sizes[axis]) + found[0])
        if axis in collapsed and (varies or free):
            made[varies[0] if varies else free.pop(0)] = axis
    return _placed(b, equation, value, made)


def _taken(b: Builder, value: Value, shape: Sequence[Any], axis: int, places: np.ndarray) -> Value:
    """The value at constant places along an axis: a slice where they are evenly spaced."""
    steps = np.unique(np.diff(places)).tolist() or [1]
    if len(steps) == 1 and steps[0] > 0:
        first, end = int(places[0]), int(places[-1]) + 1
        if (first, end, steps[0]) == (0, shape[axis], 1):
            return value
        return take_slices(b, value, len(shape), [(axis, first, end, steps[0])])
    layout = common_layout([value], len(shape))
    return Tensor(
        b.node("Gather", b.named(value, layout), b.integers(places.tolist()), axis=layout.index(axis)), layout
    )


def _placed(b: Builder, equation: Any, value: Value, made: dict[int, int]) -> Value:
    """What was taken, with its axes where the gather's output has them."""
    numbers, rank = equation.params["dimension_numbers"], len(equation.invars[0].aval.shape)
    layout = common_layout([value], rank)
    dropped = [axis for axis in numbers.collapsed_slice_dims if axis not in made.values()]
    offsets = iter(axis for axis in range(rank) if axis not in numbers.collapsed_slice_dims)
    entries = iter(range(len(equation.invars[1].aval.shape) - 1))
    outputs = range(len(equation.outvars[0].aval.shape))
    order = [next(offsets) if axis in numbers.offset_dims else made.get(next(entries), -1) for axis in outputs]
    if -1 in order:
        raise GraphError("this look-up is not written to ONNX: the same entry several times")
    name = b.named(value, layout)
    if dropped:
        name = b.node("Squeeze", name, b.integers(sorted(layout.index(axis) for axis in dropped)))
    return Tensor(name, tuple(order.index(axis) for axis in layout if axis not in dropped))


def _renamed(layout: Sequence[int], order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in layout)
