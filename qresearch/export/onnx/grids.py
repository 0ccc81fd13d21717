"""Which operands of a frozen layer are on a uniform grid that ONNX has, in which container, and why others are not."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qresearch.export.onnx.linear import Grid
from qresearch.frozen.layer import code_ends
from qresearch.graph import Contraction
from qresearch.numerics.packing import QTensor, from_qtensor
from qresearch.quantizers import Quantizer

# The dtypes that codes are held in, by the widest code that they take: 2 and 3 bits in int4, 5 to 7 in int8. Data has 8
# bits at least: ONNX Runtime 1.31 drops a Relu before a QuantizeLinear to int4, and refuses a Clip there.
CONTAINERS = {
    4: (np.dtype(jnp.uint4), np.dtype(jnp.int4)),
    8: (np.dtype(np.uint8), np.dtype(np.int8)),
    16: (np.dtype(np.uint16), np.dtype(np.int16)),
}
LEAST_DATA_BITS = 8
PROBES = 4096  # values at which a method's codes are compared with those of its grid


class OnGrid(NamedTuple):
    """An operand that becomes codes. codes: those of a kernel, in the contraction's layout, None for data. note: what
    is stored otherwise than the width says.
    """

    grid: Grid
    codes: np.ndarray | None
    note: str


def kernel_grid(tensor: QTensor, contraction: Contraction) -> OnGrid | str:
    """A packed kernel as ONNX stores it, or why it cannot."""
    if tensor.codebook is not None:
        return "its codes are indices into a codebook"
    codes = from_qtensor(tensor)
    values, scale, zero_point = (np.asarray(part) for part in (codes.values, codes.scale, codes.zero_point))
    values, zero_point = values.astype(np.int64), np.broadcast_to(zero_point, scale.shape).astype(np.float64)
    bits, note = tensor.bits, ""
    if np.any(zero_point != np.round(zero_point)):
        # (2c - 2z) s/2: a grid without a zero, of half the step; exact, and one bit wider.
        values, zero_point, scale = 2 * values, 2 * zero_point, scale / 2
        bits, note = bits + 1, "codes doubled, since its zero-points are halves"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if tensor.signed else (0, 2**bits - 1)
    container = _container(low, high, zero_point)
    if isinstance(container, str):
        return container
    if values.ndim > len(contraction.weight_shape):
        axis = contraction.weight_contracting[0 if contraction.kind == "conv_general_dilated" else -1]
        scale, zero_point = (np.squeeze(array, axis + 1) for array in (scale, zero_point))
    grid = Grid(scale.astype(np.float32), zero_point.astype(container), low, high)
    return OnGrid(
        grid, values.reshape(contraction.weight_shape).astype(container), note or _held(tensor.bits, container)
    )


def data_grid(quantizer: Quantizer, qparams: Any, contraction: Contraction, operand: str, bits: int) -> OnGrid | str:
    """The fixed uniform grid that data is rounded to, or why there is none.

    No method is asked for by name: its codes at thousands of values, ties among them, are compared with the grid's.
    """
    if "calibrates_in_apply" in quantizer.traits:
        return "its scale is taken from every tensor"
    ends = code_ends(quantizer, qparams, contraction, operand, bits)
    if ends.codebook is not None:
        return "its codes are indices into a codebook"
    scale = np.asarray(ends.scale)
    zero_point = np.broadcast_to(np.asarray(ends.zero_point), scale.shape)
    low, high = int(np.min(ends.values)), int(np.max(ends.values))
    container = _container(low, high, zero_point, LEAST_DATA_BITS)
    if isinstance(container, str):
        return container
    if scale.size > 1:  # ONNX Runtime 1.31 joins them to a MatMul as if they were one, and fails
        return "its scales vary along what is summed, which no integer contraction can use"
    if not _rounds(quantizer, qparams, bits, (scale, zero_point, low, high)):
        return "its codes are not x / scale rounded half to even"
    return OnGrid(Grid(scale, zero_point.astype(container), low, high), None, _held(bits, container))


def _rounds(quantizer: Quantizer, qparams: Any, bits: int, grid: tuple[Any, ...]) -> bool:
    scale, zero_point, low, high = grid
    steps = np.arange(low - zero_point.item() - 2, high - zero_point.item() + 2, 0.25)
    steps = steps[np.unique(np.linspace(0, steps.size - 1, min(steps.size, PROBES)).astype(int))].astype(np.float32)
    x = steps.reshape(-1, *scale.shape[1:]) * scale
    codes = quantizer.encode(qparams, jnp.asarray(x), jnp.float32(bits))
    expected = np.clip(np.round(x / scale) + zero_point, low, high)
    return np.array_equal(np.asarray(codes.scale), scale) and np.array_equal(np.asarray(codes.values), expected)


def _container(low: int, high: int, zero_point: np.ndarray, least: int = 0) -> np.dtype | str:
    """The smallest dtype that holds the codes and the zero-points, or why none does."""
    if np.any(zero_point != np.round(zero_point)):
        return "its zero-points are not whole"
    lowest, highest = min(low, int(zero_point.min())), max(high, int(zero_point.max()))
    for width, dtypes in CONTAINERS.items():
        for dtype in dtypes:
            info = jnp.iinfo(dtype)
            if width >= least and int(info.min) <= lowest and highest <= int(info.max):
                return dtype
    return f"its codes and zero-points, {lowest} to {highest}, take more than 16 bits"


def _held(bits: int, container: np.dtype) -> str:
    """What to say of codes of this width in this container."""
    width = jnp.iinfo(container).bits
    return f"{bits} bits held in {width}" if width != bits else ""
