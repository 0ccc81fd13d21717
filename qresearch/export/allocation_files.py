"""The allocation of a frozen model as plain JSON and CSV, for any other tool that quantizes the same layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qresearch.frozen import Frozen, FrozenLayer
from qresearch.frozen.layer import code_ends
from qresearch.numerics.packing import QTensor
from qresearch.quantizers.base import FLOAT_BITS
from qresearch.report.table import csv_text
from qresearch.rules import SiteRule
from qresearch.units import Unit

FORMAT = "qresearch allocation 1"
SITE_FIELDS = ("bits", "method", "granularity", "group_size", "signed", "symmetric", "scale_shape", "static")


def allocation_json(frozen: Frozen, facts: Mapping[str, Any]) -> str:
    """The layers of a frozen model, in the order in which they run, after the facts.

    Of a layer: its name, the path of its kernel among the parameters, kind (``dot_general``, ``conv_general_dilated``,
    ``gather``), its weights, macs per example, and how it runs here (``FrozenLayer.path``). Of ``weight`` and
    ``input``, null where they are in float: bits (0: pruned), method, granularity, group_size, signed and symmetric as
    the codes are, scale_shape (with ones on shared axes; groups split their axis in two), static: whether the scales
    are stored, and not found for every tensor.
    """
    return json.dumps({"format": FORMAT, **facts, "layers": list(layer_rows(frozen))}, indent=1) + "\n"


def allocation_csv(frozen: Frozen) -> str:
    """The same as one row per layer, with columns such as weight_bits and input_scale_shape (``1x1x1x16``)."""
    rows = []
    for layer in layer_rows(frozen):
        row = {name: value for name, value in layer.items() if name not in ("weight", "input")}
        for operand in ("weight", "input"):
            site = layer[operand] or {"bits": int(FLOAT_BITS)}
            row |= {f"{operand}_{name}": _cell(site.get(name)) for name in SITE_FIELDS}
        rows.append(row)
    return csv_text(rows)


def layer_rows(frozen: Frozen) -> Iterator[dict[str, Any]]:
    """What the files say of every layer."""
    for unit, layer in zip(frozen.model.units, frozen.layers):
        yield {
            "layer": layer.name,
            "parameter": unit.layer.parameter,
            "kind": unit.layer.contraction.kind,
            "weights": unit.layer.size,
            "macs": unit.layer.macs,
            "runs": layer.path,
            "weight": _site(frozen, unit, layer, "weight"),
            "input": _site(frozen, unit, layer, "input"),
        }


def _site(frozen: Frozen, unit: Unit, layer: FrozenLayer, operand: str) -> dict[str, Any] | None:
    weight = operand == "weight"
    rule, quantizer = (unit.rule.weight, unit.weight) if weight else (unit.rule.input, unit.input)
    bits, stored = layer.weight_bits if weight else layer.input_bits, frozen.arrays["layers"][layer.name].get(operand)
    if rule is None or quantizer is None or bits >= FLOAT_BITS:
        return None
    if bits == 0:
        return _facts(rule, 0, None, (), static=True)
    if isinstance(stored, QTensor):
        return _facts(rule, stored.bits, stored.signed, stored.scale.shape, static=True)
    ends = code_ends(quantizer, stored, unit.layer.contraction, operand, bits)
    static = "calibrates_in_apply" not in quantizer.traits
    return _facts(rule, quantizer.width or bits, bool(np.min(ends.values) < 0), ends.scale.shape, static=static)


def _facts(
    rule: SiteRule, bits: int, signed: bool | None, scale_shape: tuple[int, ...], *, static: bool
) -> dict[str, Any]:
    values = (
        bits,
        rule.quantizer,
        rule.granularity,
        rule.group_size,
        signed,
        rule.symmetric,
        list(scale_shape),
        static,
    )
    return dict(zip(SITE_FIELDS, values))


def _cell(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, list) else "" if value is None else value
