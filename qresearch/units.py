"""Units: the layers that an allocation gives bits to, each with the quantizers of its rule."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.cost import LayerCounts, layer_counts
from qresearch.errors import GraphError
from qresearch.graph import Call, Layer
from qresearch.quantizers import Quantizer
from qresearch.quantizers.base import ContractError
from qresearch.quantizers.check import calibrated
from qresearch.rules import Rule, SiteRule


@dataclass(frozen=True, eq=False)
class Unit:
    """A layer to give bits to. uses: the contractions it stands for, several where one kernel is used several times."""

    layer: Layer
    uses: tuple[Layer, ...]
    rule: Rule
    weight: Quantizer | None
    input: Quantizer | None


def build_units(
    layers: Sequence[Layer], rules: Mapping[str, Rule], negative: Collection[tuple[str, str]]
) -> tuple[Unit, ...]:
    """The units of the layers that have a rule, in the order of execution. negative: (layer's name, "input" or
    "weight") of all data operands that take negative values.
    """
    uses: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.name in rules:
            uses.setdefault(_unit_name(layer, rules[layer.name]), []).append(layer)
    # All iterations of a scanned layer run the same program, so one of them with negative inputs makes all signed.
    bases = {(base_name(name), operand) for name, operand in negative}

    def of(group: list[Layer]) -> set[str]:
        return {operand for name, operand in bases if name in {base_name(use.name) for use in group}}

    units = tuple(_unit(group, rules[group[0].name], of(group)) for group in uses.values())
    _check_iterations(layers, rules)
    return units


def unit_counts(units: Sequence[Unit]) -> LayerCounts:
    """What the costs of the units are computed from: see ``LayerCounts``."""
    rows = []
    for unit in units:
        contraction, layer = unit.layer.contraction, unit.layer
        # macs of a contraction are those of the whole batch that was traced, those of a layer are per example.
        share = layer.macs / contraction.macs if contraction.macs else 0.0
        stored = [
            (0, 0) if site is None else site.stored(contraction, operand)
            for operand, site in (("weight", unit.rule.weight), ("input", unit.rule.input))
        ]
        inputs = round(math.prod(contraction.input_shape) * share)
        rows.append((layer.size, layer.macs, inputs, *stored[0], *stored[1]))
    columns = np.array(rows, np.int64).reshape(len(rows), len(LayerCounts._fields) - 1).T
    return layer_counts(**dict(zip(LayerCounts._fields[1:], columns)), names=[unit.layer.name for unit in units])


def calibrate_unit(unit: Unit, recorded: Mapping[str, Any], bits: Float[Array, "2"]) -> dict[str, Any]:
    """The qparams {"weight", "input"} of a unit from the recorded tensors of its uses (see ``handlers.record``)."""
    found = [recorded[use.name] for use in unit.uses]

    def calls(operand: str) -> list[Array]:
        return [aux[operand][call] for aux in found for call in range(aux[operand].shape[0])]

    contraction = unit.layer.contraction
    kernels = calls("weight") if contraction.product else [found[0]["weight"][0]]
    weight = _join(kernels, unit, contraction.weight_contracting)
    x = _join(calls("input"), unit, contraction.input_contracting)
    return {
        "weight": unit.weight and _calibrate(unit, "weight", unit.weight, weight, bits[0]),
        "input": unit.input and _calibrate(unit, "input", unit.input, x, bits[1]),
    }


def _calibrate(unit: Unit, operand: str, quantizer: Quantizer, x: Array, bits: Float[Array, ""]) -> Any:
    """The qparams of one operand, from a method that keeps its contract for x."""
    site = _site(unit, operand)
    try:
        return calibrated(quantizer, x, bits, site is not None and site.rounding == "stochastic")
    except ContractError as error:
        raise GraphError(f"quantizer {site_text(unit, operand)}: {error}") from error.__cause__
    except GraphError as error:
        raise GraphError(f"layer {unit.layer.name}: {error}") from None


def site_text(unit: Unit, operand: str) -> str:
    """``'lsq' at conv1/kernel``: the method of an operand and its site, for messages."""
    site, place = _site(unit, operand), unit.layer.name if operand == "weight" else unit.layer.input_site
    return f"'{site.quantizer if site else None}' at {place}"


def _site(unit: Unit, operand: str) -> SiteRule | None:
    return unit.rule.weight if operand == "weight" else unit.rule.input


# What post-training methods add to a layer's qparams, for the widths they were run at. kernel: what is quantized in
# place of the model's own kernel, in the contraction's layout. shift: added to the layer's output. divisor [channels],
# rotation [channels, channels]: what the channels of the input are divided and multiplied by before it is quantized;
# a kernel that undoes it comes with them.
CORRECTIONS = ("kernel", "shift", "divisor", "rotation")


def quantized_output(unit: Unit, call: Call) -> Array:
    """The output of a call with both operands fake-quantized, and with the corrections that its qparams hold.

    A ``kernel`` in the call's state has been quantized before.
    """
    found = call.state["qparams"]
    if "kernel" in call.state:
        weight = call.state["kernel"].reshape(call.weight.shape)
    else:
        weight = fake_quantize(unit, "weight", found.get("kernel", call.weight), call)
    x = corrected_input(unit, found, call.input)
    output = call.contract(weight, fake_quantize(unit, "input", x, call))
    return corrected_output(found, output)


def corrected_output(found: Mapping[str, Any], output: Float[Array, "..."]) -> Float[Array, "..."]:
    """A layer's output, shifted where its qparams say so."""
    return output + found["shift"].astype(output.dtype) if "shift" in found else output


def corrected_input(unit: Unit, found: Mapping[str, Any], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A layer's input as it is quantized: its channels divided and rotated, where its qparams say so."""
    if not {"divisor", "rotation"}.intersection(found):
        return x
    # From the end: another use of the same kernel may have more or fewer batch axes.
    axis = unit.layer.contraction.channel_pair[1] - len(unit.layer.contraction.input_shape)
    last = jnp.moveaxis(x, axis, -1)
    if "divisor" in found:
        last = last / found["divisor"].astype(x.dtype)
    if "rotation" in found:
        last = jnp.matmul(last, found["rotation"].astype(x.dtype), precision="highest")
    return jnp.moveaxis(last, -1, axis)


def fake_quantize(unit: Unit, operand: str, x: Array, call: Call) -> Array:
    """One operand of a call, fake-quantized with the state of its layer: qparams, bits [2] and perhaps a key."""
    contraction = unit.layer.contraction
    if operand == "weight":
        quantizer, column, rank = unit.weight, 0, len(contraction.weight_shape)
    else:
        quantizer, column, rank = unit.input, 1, len(contraction.input_shape)
    if quantizer is None:
        return x
    key = call.state.get("key")
    if key is not None:  # one stream per operand, per use of a shared kernel and per scan iteration
        use = int(call.site.base.partition("#")[2] or 1)
        key = jax.random.fold_in(jax.random.fold_in(key, 2 * use + column), call.index)
    view = at_rank(x, rank)
    return quantizer.apply(call.state["qparams"][operand], view, call.state["bits"][column], key=key).reshape(x.shape)


def at_rank(x: Array, rank: int) -> Array:
    """x with leading axes added or merged: qparams have the rank of the first use, and another use may have fewer or
    more batch axes.
    """
    if x.ndim <= rank:
        return x.reshape((1,) * (rank - x.ndim) + x.shape)
    return x.reshape(-1, *x.shape[x.ndim - rank + 1 :])


def base_name(name: str) -> str:
    """A layer's name without its iteration: ``blocks/kernel#2@3`` is ``blocks/kernel#2``."""
    return name.partition("@")[0]


def _unit_name(layer: Layer, rule: Rule) -> str:
    """Uses of one whole kernel share a unit where the rule says so; slices of a fused kernel never do."""
    if rule.shared == "each" or not layer.whole:
        return layer.name
    base, at, iteration = layer.name.partition("@")
    return base.partition("#")[0] + at + iteration


def _unit(uses: list[Layer], rule: Rule, negative: Collection[str]) -> Unit:
    """negative: the operands that take negative values. Kernels are taken to, unless their rule says otherwise."""
    contraction = uses[0].contraction
    if any((use.contraction.weight_shape, use.recipe) != (contraction.weight_shape, uses[0].recipe) for use in uses):
        raise GraphError(
            f"the uses of {uses[0].name} differ in layout or in what is done to it before, so one scale cannot serve"
            " them: set shared='each'"
        )
    layer = replace(uses[0], macs=sum(use.macs for use in uses), calls=sum(use.calls for use in uses))

    def build(site: SiteRule | None, operand: str) -> Quantizer | None:
        found = operand in negative or (operand == "weight" and not contraction.product)
        signed = found if site is None or site.signed is None else site.signed
        return None if site is None else site.build(contraction, operand, signed)

    return Unit(layer, tuple(uses), rule, build(rule.weight, "weight"), build(rule.input, "input"))


def _check_iterations(layers: Sequence[Layer], rules: Mapping[str, Rule]) -> None:
    """The iterations of a scanned layer may differ in bits, not in method."""
    methods: dict[str, Any] = {}
    for layer in layers:
        rule = rules.get(layer.name)
        method = rule and (rule.weight, rule.input, rule.shared)
        if methods.setdefault(base_name(layer.name), method) != method:
            raise GraphError(
                f"{base_name(layer.name)} is one program for all its iterations: rules may give them different menus,"
                " but one method for weight and input"
            )


def _join(inputs: list[Array], unit: Unit, contracting: tuple[int, ...]) -> Array:
    """The inputs of several calls as one tensor, joined along an axis that no scale varies over."""
    if len(inputs) == 1:
        return inputs[0]
    if len({x.shape for x in inputs}) == 1:
        free = [axis for axis in range(inputs[0].ndim) if axis not in contracting]
        return jnp.concatenate(inputs, axis=free[0] if free else 0)
    if unit.rule.input is not None and unit.rule.input.granularity != "per_tensor":
        raise GraphError(
            f"the uses of {unit.layer.name} have inputs of several shapes: use per_tensor, or shared='each'"
        )
    flat = jnp.concatenate([x.reshape(-1) for x in inputs])
    return flat.reshape(-1, *[1] * (inputs[0].ndim - 1))
