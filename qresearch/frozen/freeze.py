"""Freezing: an allocation's codes in that many bits, and the model that runs on them without its float kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from qresearch.compat import used_inputs
from qresearch.errors import GraphError, did_you_mean
from qresearch.frozen.layer import FrozenLayer, plan_layer
from qresearch.frozen.model import Frozen, Stored
from qresearch.graph.handlers import record
from qresearch.graph.trace import parameter_paths
from qresearch.numerics.codes import Codes
from qresearch.numerics.fixed_point import RESCALES
from qresearch.numerics.packing import QTensor, to_qtensor
from qresearch.qmodel import Params, QParams, QuantizedModel
from qresearch.quantizers.base import FLOAT_BITS
from qresearch.units import Unit, base_name


def freeze(
    model: QuantizedModel, params: Params, qparams: QParams, bits: ArrayLike, *, requantize: str = "float"
) -> Frozen:
    """Stores every kernel in the bits that the allocation gave it; the result needs no float kernels.

    bits: [layers, 2], whole widths, not traced; qparams: of these bits (``select``). A kernel is packed at its
    layer's weight bits, at its method's own width (``Quantizer.width``), or, for a method that has learned its width,
    at the smallest one that holds its codes. ``Frozen.layers`` says which run in integers, and why others do not.
    requantize: from a sum of products to values, see ``RESCALES``. GraphError for bits that are no allocation of this
    model.
    """
    if requantize not in RESCALES:
        raise GraphError(f"unknown requantize '{requantize}'{did_you_mean(requantize, RESCALES)}")
    widths = np.asarray(bits, np.float64)
    if widths.shape != (len(model.units), 2) or np.any(widths != np.round(widths)) or np.any(widths < 0):
        raise GraphError(
            f"bits to freeze must be whole widths of shape [{len(model.units)}, 2], got shape {widths.shape}"
            + (f" with {widths[widths != np.round(widths)][0]:g}" if np.any(widths != np.round(widths)) else "")
        )
    rows = widths.astype(int).tolist()
    codes, kernels = _encoder(model)(params, qparams, jnp.asarray(widths, jnp.float32))
    codes = {
        unit.layer.name: codes[unit.layer.name] for unit, row in zip(model.units, rows) if _has_codes(unit, row[0])
    }
    layers = _alike_in_scans(
        [
            plan_layer(unit, qparams[unit.layer.name], codes.get(unit.layer.name), *row)
            for unit, row in zip(model.units, rows)
        ]
    )
    negative = {base_name(name) for name, own in codes.items() if np.min(own.values) < 0}
    stored = {
        unit.layer.name: _store(unit, layer, qparams[unit.layer.name], codes, kernels, negative)
        for unit, layer in zip(model.units, layers)
    }
    everything = dict(zip(parameter_paths(params), map(jnp.asarray, jax.tree.leaves(params))))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), jax.tree.map(jax.typeof, params))
    whole = Frozen(model, layers, {"params": everything, "layers": stored}, shapes, requantize)
    return replace(whole, arrays={"params": _needed(whole), "layers": stored})


@functools.lru_cache(maxsize=16)
def _encoder(model: QuantizedModel) -> Callable[..., tuple[dict[str, Codes], dict[str, Array]]]:
    """The codes of all quantized kernels, and the kernels in float, by layer name."""

    def encode(params: Params, qparams: QParams, bits: Array) -> tuple[dict[str, Codes], dict[str, Array]]:
        x = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.example)
        recorded = model.graph(params, x).run(record, params, x)[
            1
        ]  # of which the kernels are used: the rest is not run
        codes, kernels = {}, {}
        for row, unit in enumerate(model.units):
            found, name = qparams[unit.layer.name], unit.layer.name
            if not unit.layer.contraction.product:
                kernels[name] = found.get("kernel", recorded[unit.uses[0].name]["weight"][0])
                if unit.weight is not None:
                    codes[name] = unit.weight.encode(found["weight"], kernels[name], bits[row, 0])
        return codes, kernels

    return jax.jit(encode)


def _has_codes(unit: Unit, bits: int) -> bool:
    return unit.weight is not None and not unit.layer.contraction.product and 0 < bits < FLOAT_BITS


def _alike_in_scans(layers: Sequence[FrozenLayer]) -> tuple[FrozenLayer, ...]:
    """Iterations of a scan are one program: where some of them have no integer path, none has."""
    kinds: dict[str, list[FrozenLayer]] = {}
    for layer in layers:
        kinds.setdefault(base_name(layer.name), []).append(layer)

    def settled(layer: FrozenLayer) -> FrozenLayer:
        group = kinds[base_name(layer.name)]
        if len({(one.path, one.input_signed, one.weight_signed) for one in group}) == 1:
            return layer
        why = next((f"{one.name}: {one.reason}" for one in group if one.reason), "their codes differ in sign")
        return replace(
            layer, path="simulated", reason=layer.reason or f"another iteration of its scan is not integer ({why})"
        )

    return tuple(map(settled, layers))


def _store(
    unit: Unit,
    layer: FrozenLayer,
    found: Mapping[str, Any],
    codes: Mapping[str, Codes],
    kernels: Mapping[str, Array],
    negative: Collection[str],
) -> Stored:
    """What is kept of a layer. negative: the base names of those that have negative codes."""
    name = layer.name
    stored = {part: value for part, value in found.items() if part not in ("weight", "kernel") and value is not None}
    if unit.layer.contraction.product:
        return stored | {"weight": found["weight"]}
    if name in codes:
        return stored | {"weight": _packed(unit, layer, codes[name], base_name(name) in negative)}
    if layer.weight_bits > 0 and ("kernel" in found or ("@" in name and layer.path != "float")):
        return stored | {"weight": kernels[name]}
    return stored


def _packed(unit: Unit, layer: FrozenLayer, codes: Codes, signed: bool) -> QTensor:
    """The codes at their width: the method's own, the allocation's, or, where it was learned, the smallest that holds
    them.
    """
    assert unit.weight is not None
    low, high = int(np.min(codes.values)), int(np.max(codes.values))
    smallest = max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0) + signed
    width = unit.weight.width or layer.weight_bits
    if "learns_bits" in unit.weight.traits:
        width = max(smallest, 1)
    if smallest > width:
        raise GraphError(f"layer {layer.name}: its codes run from {low} to {high}, which {width} bits do not hold")
    return to_qtensor(codes, width, signed)


def _needed(frozen: Frozen) -> dict[str, Array]:
    """The parameters that the outputs still depend on."""
    arrays = frozen.arrays

    def outputs(params: dict[str, Array]) -> Any:
        x = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), frozen.model.example)
        return frozen.forward({**arrays, "params": params}, x, "dequantized")

    used = used_inputs(jax.make_jaxpr(outputs)(arrays["params"]))
    return {path: leaf for (path, leaf), needed in zip(sorted(arrays["params"].items()), used) if needed}
