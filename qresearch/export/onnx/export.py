"""A frozen model as an ONNX model: its kernels as codes, its inputs between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qresearch.errors import GraphError
from qresearch.export.onnx.convert import convert, trace_batch
from qresearch.export.onnx.files import SESSION_OPTIONS
from qresearch.export.onnx.grids import OnGrid, data_grid, kernel_grid
from qresearch.export.onnx.linear import Grid, dequantized, quantized
from qresearch.frozen import Frozen, FrozenLayer, run_frozen
from qresearch.frozen.model import Stored
from qresearch.graph import Call
from qresearch.numerics.codes import decode
from qresearch.numerics.packing import QTensor, from_qtensor
from qresearch.quantizers import Quantizer
from qresearch.quantizers.base import FLOAT_BITS
from qresearch.units import Unit, corrected_input, corrected_output, fake_quantize

# Weights of 7 bits cannot saturate the 16-bit sums of two products of x86 CPUs without VNNI: 2 x 255 x 64 < 2^15.
REDUCED_BITS = 7


class Operand(NamedTuple):
    """How one operand of a layer is written. note: why, or what differs from the simulation.

    container: "INT4", "UINT8", ... for codes; "float" for what is not quantized, or cannot be there; "decoded" for a
    kernel whose codes have no uniform grid, stored as their values; "computed" for data that is fake-quantized in float
    operations.
    """

    container: str
    note: str = ""


class ExportedLayer(NamedTuple):
    """A layer in the exported model. bits: what the allocation gave (weight, input)."""

    name: str
    bits: tuple[int, int]
    weight: Operand
    input: Operand


class Exported(NamedTuple):
    """An ONNX model and how each of its layers is written. model: an ``onnx.ModelProto``, opset 21, IR 10.

    batch: "any", or the number of examples that it takes and why no other.
    """

    model: Any
    layers: tuple[ExportedLayer, ...]
    batch: str


class _Plan(NamedTuple):
    """Of an operand: its grid, if it has one, and what is said about it."""

    grid: OnGrid | None
    said: Operand


def export_onnx(frozen: Frozen, x: Any, batch: int | None = None) -> Exported:
    """Writes a frozen model for inputs like x (arrays, or ``jax.ShapeDtypeStruct``) as an ONNX model.

    batch: how many examples it takes; None: any number, where the function can be traced so (``Exported.batch`` says).
    A uniform grid becomes codes in the smallest container that holds its width (``CONTAINERS``); everything else stays
    in float operations, and ``layers`` says why. What the model computes is what the frozen model's "dequantized"
    execution does, up to float rounding, but for operands that ``layers`` says are left in float. GraphError for a
    primitive that has no operator, and for layers inside a scan.
    """
    plans = {
        layer.name: (_weight(layer, unit, stored), _input(layer, unit, stored))
        for layer, unit in zip(frozen.layers, frozen.model.units)
        for stored in (frozen.arrays["layers"][layer.name],)
    }

    def handle(layer: FrozenLayer, unit: Unit, call: Call, stored: Stored) -> Array:
        weight, input = plans[layer.name]
        x = _data(unit, "input", corrected_input(unit, stored, call.input), input, layer, call, stored)
        kernel = _kernel(layer, unit, weight, call, stored)
        return corrected_output(stored, call.contract(kernel, x))

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
    traced = trace_batch(lambda x: run_frozen(frozen, handle, frozen.arrays, x), shapes, batch)
    layers = tuple(
        ExportedLayer(layer.name, (layer.weight_bits, layer.input_bits), *(plan.said for plan in plans[layer.name]))
        for layer in frozen.layers
    )
    metadata = {
        "qresearch.layers": json.dumps([_plain(layer) for layer in layers]),
        "qresearch.session_options": json.dumps(SESSION_OPTIONS),
    }
    model = convert(traced, frozen.arrays["params"], metadata)
    return Exported(model, layers, traced.described)


def reduced_range(bits: Any) -> np.ndarray:
    """An allocation [layers, 2] with weights of at most 7 bits: x86 CPUs without VNNI then cannot saturate.

    To be applied before calibration is selected and the model is frozen, so that what is exported is what was measured.
    """
    widths = np.array(bits)
    kept = widths[:, 0] >= FLOAT_BITS
    widths[:, 0] = np.where(kept, widths[:, 0], np.minimum(widths[:, 0], REDUCED_BITS))
    return widths


def _weight(layer: FrozenLayer, unit: Unit, stored: Stored) -> _Plan:
    contraction, weight = unit.layer.contraction, stored.get("weight")
    if contraction.product:
        return _planned(unit.weight, weight, unit, "weight", layer.weight_bits)
    if isinstance(weight, QTensor):
        found = kernel_grid(weight, contraction)
        return _Plan(None, Operand("decoded", found)) if isinstance(found, str) else _on_grid(found)
    return _Plan(None, Operand("float", "pruned" if layer.weight_bits == 0 else ""))


def _input(layer: FrozenLayer, unit: Unit, stored: Stored) -> _Plan:
    return _planned(unit.input, stored.get("input"), unit, "input", layer.input_bits)


def _planned(quantizer: Quantizer | None, qparams: Any, unit: Unit, operand: str, bits: int) -> _Plan:
    if quantizer is None or bits >= FLOAT_BITS:
        return _Plan(None, Operand("float"))
    if bits == 0:
        return _Plan(None, Operand("computed", "pruned"))
    contraction = unit.layer.contraction
    found = data_grid(quantizer, qparams, contraction, operand, bits)
    if not isinstance(found, str):
        return _on_grid(found)
    shape = contraction.input_shape if operand == "input" else contraction.weight_shape
    x = jax.ShapeDtypeStruct([size if isinstance(size, int) else 1 for size in shape], jnp.float32)
    try:
        convert(trace_batch(lambda x: quantizer.apply(qparams, x, jnp.float32(bits)), x), {}, {})
    except GraphError as error:
        return _Plan(None, Operand("float", f"left in float: {found}, and it has no form in ONNX ({error})"))
    return _Plan(None, Operand("computed", found))


def _on_grid(found: OnGrid) -> _Plan:
    return _Plan(found, Operand(found.grid.zero_point.dtype.name.upper(), found.note))


def _data(unit: Unit, operand: str, x: Array, plan: _Plan, layer: FrozenLayer, call: Call, stored: Stored) -> Array:
    """A data operand of a call, on its grid or fake-quantized as in training."""
    if plan.grid is not None:
        shape = unit.layer.contraction.input_shape if operand == "input" else unit.layer.contraction.weight_shape
        return quantized(x.astype(jnp.float32), _at_rank(plan.grid.grid, x.ndim, len(shape))).astype(x.dtype)
    if plan.said.container == "float":
        return x
    bits = jnp.asarray([layer.weight_bits, layer.input_bits], jnp.float32)
    qparams = {"weight": stored.get("weight"), "input": stored.get("input")}
    return fake_quantize(unit, operand, x, call._replace(state={"qparams": qparams, "bits": bits}))


def _kernel(layer: FrozenLayer, unit: Unit, plan: _Plan, call: Call, stored: Stored) -> Array:
    weight, contraction = stored.get("weight"), unit.layer.contraction
    if contraction.product:
        return _data(unit, "weight", call.weight, plan, layer, call, stored)
    if plan.grid is not None and plan.grid.codes is not None:
        kernel = dequantized(plan.grid.codes, plan.grid.grid, layer.name)
    elif isinstance(weight, QTensor):
        with jax.ensure_compile_time_eval():
            kernel = decode(from_qtensor(weight)).reshape(contraction.weight_shape)
    elif weight is not None:
        kernel = weight
    elif layer.weight_bits == 0:
        kernel = jnp.zeros(contraction.weight_shape, jnp.float32)
    else:
        kernel = call.weight
    return kernel.astype(call.weight.dtype).reshape(call.weight.shape)


def _at_rank(grid: Grid, rank: int, own: int) -> Grid:
    """The grid for another use of the kernel, whose input has more or fewer batch axes: none of them has scales."""
    if rank == own:
        return grid
    shape = grid.scale.shape[own - rank :] if rank < own else (1,) * (rank - own) + grid.scale.shape
    return grid._replace(scale=grid.scale.reshape(shape), zero_point=grid.zero_point.reshape(shape))


def _plain(layer: ExportedLayer) -> dict[str, Any]:
    return {**layer._asdict(), "weight": layer.weight._asdict(), "input": layer.input._asdict()}
