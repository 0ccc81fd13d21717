"""A frozen model as named plain arrays and a header of JSON's types, and back: what every file format stores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from qresearch.errors import DataError
from qresearch.frozen import Frozen, FrozenLayer
from qresearch.graph.trace import Function
from qresearch.numerics.packing import QTensor, pack, unpack
from qresearch.qmodel import Params, sketch_model
from qresearch.rules import Rule, SiteRule

FORMAT, VERSION = "qresearch-frozen", 1
Tensors = dict[str, NDArray[Any]]


class Stored(NamedTuple):
    """Arrays by name, ``params/...`` or ``layers/<layer>/<part>``, and the header that says what they are."""

    tensors: Tensors
    header: dict[str, Any]


class Sizes(NamedTuple):
    """Bytes: layers: codes, scales, zero-points and what quantizes inputs; others: parameters kept in float."""

    layers: int
    others: int


def sizes(stored: Stored) -> Sizes:
    """What the tensors of a stored model take; a file has its header beside them."""
    layers = sum(array.nbytes for name, array in stored.tensors.items() if name.startswith("layers/"))
    return Sizes(layers, sum(array.nbytes for array in stored.tensors.values()) - layers)


def to_stored(frozen: Frozen, facts: Mapping[str, Any] | None = None) -> Stored:
    """All that a frozen model stores. facts: what its user wants to keep beside it, of JSON's types."""
    tensors: Tensors = {f"params/{path}": np.asarray(leaf) for path, leaf in frozen.arrays["params"].items()}
    layers = []
    for layer in frozen.layers:
        entry = {name: value for name, value in dataclasses.asdict(layer).items() if value != _DEFAULTS.get(name)}
        for part, value in frozen.arrays["layers"][layer.name].items():
            prefix = f"layers/{layer.name}/{part}"
            if isinstance(value, QTensor):
                entry["weight"] = _add_qtensor(tensors, prefix, value)
            else:
                tensors |= {prefix + path: np.asarray(leaf) for path, leaf in _leaves(value)}
        layers.append(entry)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "requantize": frozen.requantize,
        "rules": [dataclasses.asdict(rule) for rule in frozen.model.rules],
        "negative": sorted(map(list, frozen.model.negative)),
        "layers": layers,
        "facts": dict(facts or {}),
    }
    return Stored(tensors, header)


def from_stored(stored: Stored, fn: Function, params: Params, x: Any, where: str) -> Frozen:
    """The frozen model of ``fn(params, x)``, of which only the shapes are looked at. where: the file, for messages.

    DataError if what is stored is of another function, format or version.
    """
    tensors, header = stored
    found = f"{header.get('format')} version {header.get('version')}"
    if found != f"{FORMAT} version {VERSION}":
        raise DataError(f"{where}: expected {FORMAT} version {VERSION}, got {found}")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    negative = [(name, operand) for name, operand in header["negative"]]
    model = sketch_model(fn, shapes, x, [_rule(values) for values in header["rules"]], negative)
    names, own = [entry["name"] for entry in header["layers"]], [layer.name for layer in model.layers]
    if names != own:
        other = next((name for name in [*names, *own] if (name in names) != (name in own)), "their order")
        raise DataError(f"{where}: its layers are not those of this function, which differs in {other}")
    bits = jax.ShapeDtypeStruct((len(own), 2), np.float32)
    template = jax.eval_shape(model.init, shapes, x, bits)
    layers = {
        entry["name"]: _layer(tensors, entry, template[entry["name"]], f"{where}: layer {entry['name']}")
        for entry in header["layers"]
    }
    kept = {name[len("params/") :]: jnp.asarray(a) for name, a in tensors.items() if name.startswith("params/")}
    planned = (FrozenLayer(**{k: v for k, v in entry.items() if k != "weight"}) for entry in header["layers"])
    return Frozen(model, tuple(planned), {"params": kept, "layers": layers}, shapes, header["requantize"])


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(FrozenLayer)}


def _rule(values: dict[str, Any]) -> Rule:
    def site(own: dict[str, Any] | None) -> SiteRule | None:
        return None if own is None else SiteRule(**{**own, "options": _tuple(own["options"])})

    return Rule(**{**values, "weight": site(values["weight"]), "input": site(values["input"])})


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree.leaves_with_path(value):
        yield "".join(f"/{getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key)))}" for key in path), leaf


def _add_qtensor(tensors: Tensors, prefix: str, tensor: QTensor) -> dict[str, Any]:
    """Adds the arrays of a packed kernel and returns its entry of the header. A zero-point has the width of a code."""
    tensors[f"{prefix}/codes"] = np.asarray(tensor.payload)
    tensors[f"{prefix}/scale"] = np.asarray(tensor.scale)
    if tensor.codebook is not None:
        tensors[f"{prefix}/codebook"] = np.asarray(tensor.codebook)
    entry: dict[str, Any] = {"bits": tensor.bits, "shape": list(tensor.shape), "signed": tensor.signed}
    points = np.asarray(tensor.zero_point)
    low = -(2 ** (tensor.bits - 1)) if tensor.signed else 0
    if np.all(points == points.flat[0]):
        return entry | {"zero_point": float(points.flat[0])}
    if np.all(points == np.round(points)) and points.min() >= low and points.max() < low + 2**tensor.bits:
        tensors[f"{prefix}/zero_point"] = np.asarray(pack(jnp.asarray(points, jnp.int32), tensor.bits))
        return entry | {"zero_point": "packed"}
    tensors[f"{prefix}/zero_point"] = points
    return entry | {"zero_point": "float32"}


def _qtensor(found: Mapping[str, Any], entry: Mapping[str, Any]) -> QTensor:
    bits, shape, signed = entry["bits"], tuple(entry["shape"]), entry["signed"]
    scale, points = found["weight/scale"], found.get("weight/zero_point")
    if points is None:
        points = jnp.full(scale.shape, entry["zero_point"], jnp.float32)
    elif entry["zero_point"] == "packed":
        points = unpack(points, bits, math.prod(scale.shape), signed).astype(jnp.float32).reshape(scale.shape)
    return QTensor(found["weight/codes"], scale, points, found.get("weight/codebook"), bits, shape, signed)


def _layer(tensors: Tensors, entry: Mapping[str, Any], template: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is stored of a layer. template: the structure of its qparams."""
    prefix = f"layers/{entry['name']}/"
    found = {name[len(prefix) :]: jnp.asarray(a) for name, a in tensors.items() if name.startswith(prefix)}
    layer: dict[str, Any] = {}
    if "weight" in entry:
        layer["weight"] = _qtensor(found, entry["weight"])
    # A method without qparams leaves nothing to store, and has them nevertheless.
    empty = {part for part, own in template.items() if own is not None and not jax.tree.leaves(own)}
    for part in ({name.split("/")[0] for name in found} | empty) - layer.keys():
        own = {name[len(part) :]: array for name, array in found.items() if name.split("/")[0] == part}
        if list(own) == [""]:  # an array itself
            layer[part] = own[""]
            continue
        paths = [path for path, _ in _leaves(template.get(part))]
        if sorted(paths) != sorted(own):
            raise DataError(f"{where}: its {part} holds {sorted(own)}, expected {sorted(paths)}")
        layer[part] = jax.tree.unflatten(jax.tree.structure(template[part]), [own[path] for path in paths])
    return layer
