"""The ONNX graph under construction: nodes, initializers, and values whose axes may stand in another order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from qresearch.errors import GraphError
from qresearch.export.onnx.packages import import_onnx

# Which axis of the JAX value stands at each place of the ONNX value. ONNX convolves [batch, channel, ...] only: what
# comes out of a convolution stays in that order, and so does what is computed from it, until an order matters.
Layout: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value that a node writes."""

    name: str
    layout: Layout


@dataclass(frozen=True, eq=False)
class Lazy:
    """A value whose nodes are written where it is read, in the layout that is asked for there: ``make(layout)`` is its
    name. So a DequantizeLinear stands directly before what reads it. layout: the one that costs nothing.
    """

    make: Callable[[Layout], str]
    layout: Layout


Value: TypeAlias = np.ndarray | Tensor | Lazy


def plain(rank: int) -> Layout:
    """The layout of JAX itself."""
    return tuple(range(rank))


@dataclass(eq=False)
class Builder:
    """Collects a graph. batch: the symbol that stands for the number of examples in JAX's shapes, or None.

    batch_source: the graph's input whose first axis has that number.
    """

    batch: Any = None
    batch_source: str = ""
    nodes: list[Any] = field(default_factory=list)
    initializers: dict[str, Any] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)  # that convolutions give, by the names of their outputs
    names: dict[int, str] = field(default_factory=dict)  # what arrays are called, by their id
    _kept: list[Any] = field(default_factory=list)  # so that no id is used twice
    _known: dict[Any, str] = field(default_factory=dict)  # what was written before, and need not be again
    _count: int = 0

    def fresh(self, hint: str) -> str:
        """A name that nothing has yet."""
        self._count += 1
        return f"{hint}_{self._count}"

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Writes a node of one output, and returns the output's name. The same node is written once."""
        key = (operator, inputs, repr(sorted(attributes.items())))
        if key not in self._known:
            output = self.fresh(operator)
            node = import_onnx().helper.make_node(operator, inputs, [output], name=output, **attributes)
            self.nodes.append(node)
            self._known[key] = output
        return self._known[key]

    def split(self, name: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Writes a Split and returns the names of its outputs."""
        outputs = [self.fresh("Split") for _ in sizes]
        inputs = [name, self.integers(sizes)]
        self.nodes.append(import_onnx().helper.make_node("Split", inputs, outputs, name=outputs[0], axis=axis))
        return outputs

    def name_array(self, array: np.ndarray, name: str) -> None:
        """What the initializer that comes from this array is called."""
        self._kept.append(array)
        self.names[id(array)] = name

    def constant(self, array: np.ndarray, layout: Layout | None = None) -> str:
        """The name of an initializer with these values, its axes in the order of the layout; equal ones share one."""
        name = self.names.get(id(array), "constant")
        array = array if layout is None else array.transpose(layout)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.initializer(array, name)
        return self._known[key]

    def initializer(self, array: np.ndarray, name: str) -> str:
        """The name of an initializer that nothing else shares."""
        if name == "constant" or name in self.initializers:
            name = self.fresh(name)
        array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray makes a scalar a vector
        self.initializers[name] = import_onnx().numpy_helper.from_array(array, name)
        return name

    def integers(self, values: Sequence[int]) -> str:
        """A constant of shapes or axes."""
        return self.constant(np.array(values, np.int64))

    def named(self, value: Value, layout: Layout | None = None) -> str:
        """The name under which a value can be read with its axes in the order of the layout; JAX's own by default."""
        if isinstance(value, np.ndarray):
            return self.constant(value, layout)
        layout = plain(len(value.layout)) if layout is None else tuple(layout)
        if isinstance(value, Lazy):
            key = (id(value), layout)
            if key not in self._known:
                self._kept.append(value)
                self._known[key] = value.make(layout)
            return self._known[key]
        if layout == value.layout:
            return value.name
        return self.node("Transpose", value.name, perm=[value.layout.index(axis) for axis in layout])

    def dimension(self, size: Any) -> str:
        """The name of an int64 vector of one element: a symbolic dimension, which must be a multiple of the batch."""
        factor = size // self.batch
        if not isinstance(factor, int) or factor * self.batch != size:
            raise GraphError(f"a dimension of {size} is no multiple of the batch: export with a fixed batch")
        batch = self.node("Shape", self.batch_source, start=0, end=1)
        return batch if factor == 1 else self.node("Mul", batch, self.integers([factor]))

    def shape(self, dimensions: Sequence[Any]) -> str:
        """The name of an int64 vector with these dimensions, some of which may be multiples of the batch."""
        if all(isinstance(size, int | np.integer) for size in dimensions):
            return self.integers([int(size) for size in dimensions])
        parts = []
        for size in dimensions:
            if isinstance(size, int | np.integer):
                parts.append(self.integers([int(size)]))
                continue
            parts.append(self.dimension(size))
        return self.node("Concat", *parts, axis=0)

    def reshape(self, name: str, dimensions: Sequence[Any]) -> str:
        """Writes a Reshape; one symbolic dimension is whatever the others leave."""
        sizes = [int(size) if isinstance(size, int | np.integer) else -1 for size in dimensions]
        target = self.integers(sizes) if sizes.count(-1) < 2 and 0 not in sizes else self.shape(dimensions)
        return self.node("Reshape", name, target)


def elements(shape: Sequence[int]) -> int:
    """How many elements an array of this shape has."""
    return math.prod(shape)


def layout_of(value: Value) -> Layout | None:
    """The layout that costs nothing; None for a constant, which has none."""
    return None if isinstance(value, np.ndarray) else value.layout


def common_layout(values: Sequence[Value], rank: int) -> Layout:
    """The layout in which an operation over values of one rank costs fewest transpositions: the first that differs
    from JAX's own.
    """
    found = [layout for value in values if (layout := layout_of(value)) is not None and len(layout) == rank]
    return next((layout for layout in found if layout != plain(rank)), plain(rank))
