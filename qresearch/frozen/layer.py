"""Which layers have an integer path, and why the others have none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from qresearch.graph import Contraction
from qresearch.numerics.codes import Codes
from qresearch.quantizers import Quantizer
from qresearch.quantizers.base import FLOAT_BITS
from qresearch.units import Unit

# integer: int8 codes summed in int32. weight_only: stored codes, decoded where they meet a float input. simulated:
# decoded weights and fake-quantized inputs, multiplied in float. float: as the model computes it.
PATHS = ("integer", "weight_only", "simulated", "float")
MAX_CODE_BITS = 8
HUGE = 1e30  # beyond the ends of every grid
LARGEST_SUM = 2**29  # of products: int32 holds four times a sum, since zero-points may be halves


@dataclass(frozen=True)
class FrozenLayer:
    """How a layer is computed once it is frozen.

    weight_bits, input_bits: what the allocation gave (32 float, 0 pruned). path: one of ``PATHS``; reason: why it is
    not "integer". input_signed, weight_signed: of codes that are made at run time; int8, else uint8.
    """

    name: str
    weight_bits: int
    input_bits: int
    path: str
    reason: str = ""
    input_signed: bool = True
    weight_signed: bool = True


def plan_layer(
    unit: Unit, found: Mapping[str, Any], kernel: Codes | None, weight_bits: int, input_bits: int
) -> FrozenLayer:
    """How a unit with these qparams is computed. kernel: its codes, where it is stored as codes."""
    contraction, named = unit.layer.contraction, (unit.layer.name, weight_bits, input_bits)
    quantized_input = unit.input is not None and input_bits < FLOAT_BITS
    quantized_weight = unit.weight is not None and weight_bits < FLOAT_BITS
    if not (quantized_input or quantized_weight):
        return FrozenLayer(*named, "float", "neither operand is quantized")
    if kernel is not None and not quantized_input:
        return FrozenLayer(*named, "weight_only", "its input is in float")
    if 0 in (weight_bits, input_bits):
        return FrozenLayer(*named, "simulated", "it is pruned")
    if not (quantized_input and quantized_weight):
        return FrozenLayer(*named, "simulated", f"its {'weight' if quantized_input else 'input'} is in float")
    assert unit.weight is not None
    assert unit.input is not None
    x = code_ends(unit.input, found["input"], contraction, "input", input_bits)
    weight = kernel or code_ends(unit.weight, found["weight"], contraction, "weight", weight_bits)
    reason = next(_reasons(contraction, weight, x), "")
    signs = bool(np.min(x.values) < 0), bool(np.min(weight.values) < 0)
    return FrozenLayer(*named, "simulated" if reason else "integer", reason, *signs)


def code_ends(quantizer: Quantizer, qparams: Any, contraction: Contraction, operand: str, bits: int) -> Codes:
    """The smallest and the largest codes of a data operand, along a new leading axis of ``values``, with its grid.

    What is quantized for that is as small as scales allow: one element along every axis that is not summed over.
    """
    weight = operand == "weight"
    shape = contraction.weight_shape if weight else contraction.input_shape
    summed = contraction.weight_contracting if weight else contraction.input_contracting
    probe = jnp.ones([size if axis in summed else 1 for axis, size in enumerate(shape)], jnp.float32)
    low, high = (quantizer.encode(qparams, end * probe, jnp.float32(bits)) for end in (-HUGE, HUGE))
    return low._replace(values=jnp.stack([low.values, high.values]))


def _reasons(contraction: Contraction, weight: Codes, x: Codes) -> Iterator[str]:
    """Why this contraction cannot be done in integers."""
    for operand, codes in (("right operand" if contraction.product else "kernel", weight), ("input", x)):
        if codes.codebook is not None:
            yield f"the codes of its {operand} are indices into a codebook"
        twice = 2.0 * np.asarray(codes.zero_point)
        if np.any(twice != np.round(twice)):
            yield f"the zero-point of its {operand} is neither whole nor half"
        low, high = int(np.min(codes.values)), int(np.max(codes.values))
        half = 2 ** (MAX_CODE_BITS - 1)
        if not (-half <= low and high < (half if low < 0 else 2 * half)):
            yield f"the codes of its {operand}, {low} to {high}, take more than {MAX_CODE_BITS} bits"
    if contraction.kind == "gather":
        yield "it is a look-up, which multiplies nothing"
    yield from (_of_convolution if contraction.kind == "conv_general_dilated" else _of_dot)(contraction, weight, x)
    products = math.prod(contraction.weight_shape[axis] for axis in contraction.weight_contracting)
    largest = products * _magnitude(weight) * _magnitude(x)
    if largest >= LARGEST_SUM:
        yield f"its sums of {products} products may reach {largest:.1e}, and int32 holds four times {LARGEST_SUM:.1e}"


def _of_convolution(contraction: Contraction, weight: Codes, x: Codes) -> Iterator[str]:
    parameters = dict(contraction.parameters)
    if parameters["batch_group_count"] != 1:
        yield "its convolution has groups of examples"
    batch = parameters["dimension_numbers"].lhs_spec[0]
    for operand, codes, own, rank in (
        ("kernel", weight, contraction.channel_axes[0], len(contraction.weight_shape)),
        ("input", x, batch, len(contraction.input_shape)),
    ):
        if codes.scale.ndim != rank or any(size > 1 for axis, size in enumerate(codes.scale.shape) if axis != own):
            yield f"its {operand} has several scales along what a convolution sums over"


def _of_dot(contraction: Contraction, weight: Codes, x: Codes) -> Iterator[str]:
    groups = [
        codes.scale.shape[axis]
        for codes, shape, axis in (
            (weight, contraction.weight_shape, contraction.weight_contracting[-1]),
            (x, contraction.input_shape, contraction.input_contracting[-1]),
        )
        if codes.scale.ndim > len(shape)
    ]
    if len(set(groups)) > 1:
        yield "the groups of its two operands differ in size"


def _magnitude(codes: Codes) -> float:
    """The largest |code - zero_point|."""
    zero_point = np.asarray(codes.zero_point, np.float64)
    return float(max(np.abs(int(end) - zero_point).max() for end in (codes.values.min(), codes.values.max())))
