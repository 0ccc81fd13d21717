"""An allocation as a rule list for Qwix, Google's quantization library for Flax: https://github.com/google/qwix.

``[qwix.QuantizationRule(**rule) for rule in json.load(file)["rules"]]`` quantizes the same layers of the same Flax
model to the same widths. Qwix finds most ranges anew, so whatever is not the same there is said layer by layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.frozen.layer import code_ends
from qresearch.graph.handlers import record
from qresearch.numerics.codes import Codes
from qresearch.numerics.granularity import per_group
from qresearch.qmodel import Bits, Params, QParams, QuantizedModel
from qresearch.quantizers.base import FLOAT_BITS
from qresearch.units import CORRECTIONS, Unit, base_name

FORMAT = "qwix rules 1"
WIDTHS = range(2, 9)
AFFINE_WIDTHS = (4, 8)  # of which Qwix has asymmetric codes
SAME = 1e-5  # relative, of two scales: what float32 leaves of a division


class Difference(NamedTuple):
    """What Qwix does otherwise. operand: "weight", "input", or "layer" for one that it leaves in float."""

    layer: str
    operand: str
    what: str


class Site(NamedTuple):
    """What a rule says of one operand. what: how it differs, "" if it does not."""

    qtype: str | None
    method: str = "absmax"
    what: str = ""
    tile_size: int | None = None


def qwix_json(model: QuantizedModel, params: Params, qparams: QParams, bits: Bits, facts: Mapping[str, Any]) -> str:
    """The file: the facts, the rules, and the differences."""
    rules, differences = qwix_rules(model, params, qparams, bits)
    content = {"rules": rules, "differences": [difference._asdict() for difference in differences]}
    return json.dumps({"format": FORMAT, **facts, **content}, indent=1) + "\n"


def qwix_rules(
    model: QuantizedModel, params: Params, qparams: QParams, bits: Bits
) -> tuple[list[dict[str, Any]], list[Difference]]:
    """(rules, differences): keywords of ``qwix.QuantizationRule``, one for every module, and what Qwix does otherwise.

    Without a difference a layer has the same codes there, for its weights and for every input: a range of ours that is
    per tensor is written as ``fixed``, one that follows the largest weight as ``absmax``, with the factor between
    their scale, max / (2^(b-1) - 1/2), and ours. bits: [layers, 2], whole widths.
    """
    kernels = _kernels(model, params)
    rules: dict[str, dict[str, Any]] = {}
    differences = []
    for unit, row in zip(model.units, np.asarray(bits).astype(int).tolist()):
        rule, found = _rule(unit, kernels.get(unit.layer.name), qparams[unit.layer.name], *row)
        path = re.escape(base_name(unit.layer.name).partition("#")[0].rpartition("/")[0])
        if unit.layer.contraction.product or unit.layer.contraction.kind == "gather":
            rule = {}  # of the module around it, whose other contractions are none of our business
        elif rules.setdefault(path, rule) != rule:
            rules[path] = {}
            found = [Difference("", "layer", "left in float: its module has layers of other widths")]
        differences += [difference._replace(layer=unit.layer.name) for difference in found]
    return [{"module_path": path, **rule} for path, rule in rules.items()], differences


def _rule(
    unit: Unit, kernel: Any, found: Mapping[str, Any], weight_bits: int, input_bits: int
) -> tuple[dict[str, Any], list[Difference]]:
    """The keywords for one layer, none where it stays in float, and its differences."""
    quantized = (unit.weight is not None and weight_bits < FLOAT_BITS), (unit.input is not None and input_bits < 32)
    if not any(quantized):
        return {}, []
    reason = _refusal(unit, *quantized, weight_bits, input_bits)
    if reason:
        return {}, [Difference("", "layer", f"left in float: {reason}")]
    weight, x = _weight(unit, kernel, found, weight_bits), Site(None)
    rule: dict[str, Any] = {"weight_qtype": weight.qtype, "weight_calibration_method": weight.method}
    if weight.tile_size:
        rule["tile_size"] = weight.tile_size
    if quantized[1]:
        x = _input(unit, found, input_bits)
        if weight.tile_size and not (x.what or x.method.startswith("fixed")):
            x = x._replace(what="its range is that of a token here; Qwix gives it the groups of the weight")
        rule |= {"act_qtype": x.qtype, "act_calibration_method": x.method}
    left_out = [name for name in CORRECTIONS if name != "kernel" and name in found]
    differences = [Difference("", *pair) for pair in (("weight", weight.what), ("input", x.what)) if pair[1]]
    if left_out:
        differences.append(Difference("", "layer", f"post-training methods left it a {', a '.join(left_out)}"))
    return rule, differences


def _refusal(unit: Unit, weight: bool, input: bool, weight_bits: int, input_bits: int) -> str:
    """Why Qwix cannot quantize a layer to these widths at all."""
    contraction = unit.layer.contraction
    if contraction.product or contraction.kind == "gather":
        return "a rule of Qwix takes all contractions of a module, and this one is no layer of its own there"
    if not weight:
        return "Qwix quantizes no input beside a weight in float"
    wrong = [bits for bits, there in ((weight_bits, weight), (input_bits, input)) if there and bits not in WIDTHS]
    if wrong:
        return f"Qwix has no integers of {wrong[0]} bits"
    if contraction.kind == "conv_general_dilated" and not (input and weight_bits == input_bits):
        return "a convolution of Qwix has one type for weight and input"
    return ""


def _weight(unit: Unit, kernel: Any, found: Mapping[str, Any], bits: int) -> Site:
    assert unit.weight is not None
    contraction, rule = unit.layer.contraction, unit.rule.weight
    assert rule is not None
    codes, qtype = unit.weight.encode(found["weight"], found.get("kernel", kernel), jnp.float32(bits)), f"int{bits}"
    if codes.codebook is not None or np.any(codes.zero_point):
        return Site(qtype, what="its codes are not symmetric integers here; Qwix rounds to such, by their absmax")
    size = rule.group_size if codes.scale.ndim > kernel.ndim else None
    if size and (contraction.kind != "dot_general" or len(contraction.weight_contracting) > 1):
        return Site(qtype, what="its scales are per group here; Qwix has groups in products of matrices only")
    view = np.asarray(per_group(contraction.weight_contracting[-1], size).view(kernel) if size else kernel)
    plain = np.clip(np.round(view / codes.scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    changed = "" if np.array_equal(plain, codes.values) else "its codes are not those of the nearest steps here"
    if codes.scale.size == 1:
        return Site(qtype, _fixed(codes.scale, bits), changed)
    channels = tuple(kernel.shape[axis] if axis in contraction.channel_axes else 1 for axis in range(kernel.ndim))
    factor = _factor(view, codes, bits) if size or codes.scale.shape == channels else None
    if factor is None:
        what = f"its scales are its own here; Qwix takes the absmax of every {'group' if size else 'channel'}"
        return Site(qtype, what=what, tile_size=size)
    return Site(qtype, f"absmax,{factor:.9g}", changed, size)


def _input(unit: Unit, found: Mapping[str, Any], bits: int) -> Site:
    assert unit.input is not None
    assert unit.rule.input is not None
    contraction, qtype = unit.layer.contraction, f"int{bits}"
    if "calibrates_in_apply" in unit.input.traits:
        return _dynamic(unit, found, bits)
    ends = code_ends(unit.input, found["input"], contraction, "input", bits)
    low, high = int(np.min(ends.values)), int(np.max(ends.values))
    if ends.codebook is not None:
        return Site(qtype, what="its codes are indices into a codebook here; Qwix rounds to integers, by their absmax")
    if ends.scale.size > 1:
        return Site(qtype, what="its scales are per channel here; Qwix has one for every example or token")
    half, zero_point = 2 ** (bits - 1), float(np.asarray(ends.zero_point).reshape(()))
    if (low, high, zero_point) == (-half, half - 1, 0.0):
        return Site(qtype, _fixed(ends.scale, bits))
    if bits in AFFINE_WIDTHS and high - low == 2 * half - 1 and zero_point == round(zero_point):
        scale = float(np.asarray(ends.scale).reshape(()))
        return Site(qtype, f"fixed,{scale * (low - zero_point):.9g},{scale * (high - zero_point):.9g}")
    shown = f"{low} to {high}" + (f" around {zero_point:g}" if zero_point else "")
    return Site(qtype, what=f"its codes are {shown} here; those of Qwix are {-half} to {half - 1}, by the absmax")


def _dynamic(unit: Unit, found: Mapping[str, Any], bits: int) -> Site:
    """An input whose range is that of every tensor: the same in Qwix where that is its absmax, for every token."""
    assert unit.input is not None
    contraction = unit.layer.contraction
    # Two examples in place of a batch; values of either sign, none twice.
    shape = [size if axis in contraction.input_contracting else 2 for axis, size in enumerate(contraction.input_shape)]
    x = jax.random.normal(jax.random.key(0), shape, jnp.float32)
    codes = unit.input.encode(found["input"], x, jnp.float32(bits))
    per_token = unit.rule.input is not None and unit.rule.input.granularity == "per_token"
    symmetric = codes.codebook is None and not np.any(codes.zero_point) and int(np.min(codes.values)) < 0
    factor = _factor(np.asarray(x), codes, bits) if per_token and symmetric else None
    if factor is None:
        return Site(
            f"int{bits}", what="its range is found otherwise here; Qwix takes the absmax of every example or token"
        )
    return Site(f"int{bits}", f"absmax,{factor:.9g}")


def _fixed(scale: Any, bits: int) -> str:
    """The range whose symmetric scale in Qwix is ours."""
    return f"fixed,{-(end := float(np.asarray(scale).reshape(())) * (2 ** (bits - 1) - 0.5)):.9g},{end:.9g}"


def _factor(x: np.ndarray, codes: Codes, bits: int) -> float | None:
    """The factor on Qwix's absmax that gives our scales, if there is one for all of them. x: in the scales' view."""
    scale = np.asarray(codes.scale, np.float64)
    largest = np.max(np.abs(x), axis=tuple(axis for axis, size in enumerate(scale.shape) if size == 1), keepdims=True)
    if not np.any(largest > 0):
        return None
    factors = (scale * (2 ** (bits - 1) - 0.5))[largest > 0] / largest[largest > 0]
    return float(np.median(factors)) if np.ptp(factors) < SAME * np.median(factors) else None


def _kernels(model: QuantizedModel, params: Params) -> dict[str, Any]:
    """The kernels of all layers, in the layout of their contractions."""
    x = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.example)
    units = [unit for unit in model.units if not unit.layer.contraction.product]

    def kernels(params: Params) -> dict[str, Any]:
        recorded = model.graph(params, x).run(record, params, x)[1]  # of which only the kernels are run
        return {unit.layer.name: recorded[unit.uses[0].name]["weight"][0] for unit in units}

    return jax.jit(kernels)(params)
