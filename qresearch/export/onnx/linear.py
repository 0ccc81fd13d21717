"""Quantized values in a traced function: two primitives, which become QuantizeLinear and DequantizeLinear.

They are traced and converted; executing them gives what the nodes give.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core

from qresearch.errors import GraphError
from qresearch.export.onnx.builder import Builder, Layout, Lazy, Value, layout_of, plain

QUANTIZE, DEQUANTIZE = "onnx_quantize", "onnx_dequantize"


class Grid(NamedTuple):
    """A uniform grid as ONNX has it: code = saturate(round(x / scale) + zero_point), x = (code - zero_point) scale.

    scale: float32, of the rank of x: an axis of it has one element, as many as x's, or one for every group of
    consecutive ones. zero_point: of scale's shape, in the container's dtype. low, high: the codes in use, which may be
    fewer than the container's.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    low: int
    high: int

    @property
    def clips(self) -> bool:
        """Whether the container has codes that the grid has not."""
        info = jnp.iinfo(self.zero_point.dtype)
        return (self.low, self.high) != (int(info.min), int(info.max))


def quantized(x: Array, grid: Grid) -> Array:
    """x on the grid, as the pair QuantizeLinear, DequantizeLinear computes it."""
    return _quantize.bind(x, jnp.asarray(grid.scale), jnp.asarray(grid.zero_point), low=grid.low, high=grid.high)


def dequantized(codes: np.ndarray, grid: Grid, name: str) -> Array:
    """Stored codes, in the container's dtype, as values. name: of the initializers."""
    return _dequantize.bind(jnp.asarray(codes), jnp.asarray(grid.scale), jnp.asarray(grid.zero_point), name=name)


def quantize_linear(b: Builder, equation: Any, values: list[Value]) -> Value:
    """The pair, in whatever layout it is read: a runtime looks for it directly before a contraction."""
    x, scale, zero_point = values
    shape = equation.invars[0].aval.shape
    grid = Grid(np.asarray(scale), np.asarray(zero_point), equation.params["low"], equation.params["high"])

    def make(layout: Layout) -> str:
        *arrays, attributes = _arranged(grid, shape, layout)
        scales = [b.initializer(array, "constant") for array in arrays]
        name = _saturated(b, b.named(x, layout), grid, layout) if grid.clips else b.named(x, layout)
        return b.node("DequantizeLinear", b.node("QuantizeLinear", name, *scales, **attributes), *scales, **attributes)

    return Lazy(make, layout_of(x) or plain(len(shape)))


def dequantize_linear(b: Builder, equation: Any, values: list[Value]) -> Value:
    """Codes as an initializer, transposed here, and the node that reads them."""
    codes, scale, zero_point = map(np.asarray, values)
    grid, name = Grid(scale, zero_point, 0, 0), equation.params["name"]

    def make(layout: Layout) -> str:
        laid = codes.transpose(layout)
        *arrays, attributes = _arranged(grid, codes.shape, layout)
        # ONNX Runtime 1.31 joins blocks of 8 bits to a MatMul of quantized data, and fails then: a Reshape is between.
        split = "block_size" in attributes and jnp.iinfo(codes.dtype).bits == 8
        if split:
            axis, size = attributes["axis"], attributes["block_size"]
            laid = laid.reshape(*laid.shape[:axis], -1, size, *laid.shape[axis + 1 :])
            arrays = [np.expand_dims(array, axis + 1) for array in arrays]
            attributes = {"axis": axis + 1, "block_size": size}
        parts = zip((laid, *arrays), ("codes", "scale", "zero_point"))
        # Not shared: with x64quantprecision, ONNX Runtime 1.31 rewrites those of int8, and fails at one it meets twice.
        inputs = [b.initializer(array, f"{name}/{part}") for array, part in parts]
        values = b.node("DequantizeLinear", *inputs, **attributes)
        return b.reshape(values, [codes.shape[axis] for axis in layout]) if split else values

    return Lazy(make, plain(codes.ndim))


def _arranged(grid: Grid, shape: tuple[Any, ...], layout: Layout) -> tuple[Any, ...]:
    """Scale and zero-point in the layout, and the attributes that say which axis they vary along."""
    have = grid.scale.shape
    vary = [axis for axis, size in enumerate(have) if size != 1]
    if not vary:
        return grid.scale.reshape(()), grid.zero_point.reshape(()), {}
    if len(vary) == 1 and have[vary[0]] == shape[vary[0]]:
        return grid.scale.reshape(-1), grid.zero_point.reshape(-1), {"axis": layout.index(vary[0])}
    # One for every block along an axis, and for every index of the others.
    axis = _block_axis(have, shape)
    full = [have[i] if i == axis else size for i, size in enumerate(shape)]
    scale, zero_point = (np.broadcast_to(array, full).transpose(layout) for array in grid[:2])
    return scale, zero_point, {"axis": layout.index(axis), "block_size": shape[axis] // have[axis]}


def _block_axis(have: tuple[int, ...], shape: tuple[int, ...]) -> int:
    grouped = [axis for axis, size in enumerate(have) if size not in (1, shape[axis])]
    shared = [axis for axis, size in enumerate(have) if size == 1]
    if len(grouped) > 1 or not (grouped or shared):
        raise GraphError(f"ONNX has one block size for one axis; scales of shape {have} for codes {shape} need more")
    return grouped[0] if grouped else max(shared, key=lambda axis: shape[axis])


def _saturated(b: Builder, name: str, grid: Grid, layout: Layout) -> str:
    """x clipped to the values of the grid's ends, so that its codes end there and not where the container's do."""
    offsets = (code - grid.zero_point.astype(np.float32) for code in (grid.low, grid.high))
    low, high = ((offset * grid.scale).astype(np.float32) for offset in offsets)
    if grid.scale.size == 1:
        return b.node("Clip", name, b.constant(low.reshape(())), b.constant(high.reshape(())))
    return b.node("Min", b.node("Max", name, b.constant(low, layout)), b.constant(high, layout))


def _spread(scale: Array, shape: tuple[int, ...]) -> Array:
    """Scales with those of groups repeated."""
    for axis, (have, want) in enumerate(zip(scale.shape, shape)):
        if have not in (1, want):
            scale = jnp.repeat(scale, want // have, axis)
    return scale


def _run_quantize(x: Array, scale: Array, zero_point: Array, *, low: int, high: int) -> Array:
    offset = zero_point.astype(jnp.float32)
    return (jnp.clip(jnp.round(x / scale) + offset, low, high) - offset) * scale


def _run_dequantize(codes: Array, scale: Array, zero_point: Array, *, name: str) -> Array:
    steps = codes.astype(jnp.float32) - _spread(zero_point.astype(jnp.float32), codes.shape)
    return steps * _spread(scale, codes.shape)


_quantize, _dequantize = core.Primitive(QUANTIZE), core.Primitive(DEQUANTIZE)
_quantize.def_impl(_run_quantize)
_quantize.def_abstract_eval(lambda x, scale, zero_point, **_: x)
_dequantize.def_impl(_run_dequantize)
_dequantize.def_abstract_eval(lambda codes, scale, zero_point, **_: codes.update(dtype=scale.dtype))
