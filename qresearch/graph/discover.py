"""Discovery: follow parameters through a jaxpr to the contractions that use them.

A contraction of data with an origin is a layer. Shapes never decide: whether a 16 x 16 operand is a kernel depends on
where it comes from. Products of data and embedding look-ups get sites too, for rules that ask (``optional``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from jax.extend import core, source_info_util

from qresearch.compat import is_literal, open_jaxpr, scan_counts
from qresearch.graph.contraction import CONTRACTIONS, RAGGED, describe, macs
from qresearch.graph.dataflow import CONSTANT, DATA, Discovery, Flow, Origin, layer_name, merge
from qresearch.graph.layer import Unassigned, is_optional
from qresearch.graph.optional import embedding_site, product_site, scope_of
from qresearch.graph.plan import Nested, Plan, Site, kernel_site

REMAT = ("checkpoint", "remat", "remat2")
JIT = ("jit", "pjit")
ELEMENTWISE = ("optimization_barrier", "device_put")  # several values at once, each output from its own input
# The inner jaxprs of these keep their own rule: a derivative, a choice, a loop of unknown length.
OPAQUE = {
    "custom_jvp_call": "a custom_jvp function, whose rule would be lost",
    "custom_vjp_call": "a custom_vjp function, whose rule would be lost",
    "cond": "a cond, of which only one branch runs",
    "while": "a while loop, whose number of iterations is not known",
}


def analyse(
    inner: Any, flows: Sequence[Flow], discovery: Discovery, scans: tuple[int, ...] = ()
) -> tuple[Plan, list[Flow]]:
    """The plan of a jaxpr whose inputs have these flows, and the flows of its outputs. scans: lengths of those
    around it.
    """
    jaxpr, consts = open_jaxpr(inner)
    plan = Plan(jaxpr, consts)
    known: dict[Any, Flow] = dict(zip(jaxpr.invars, flows)) | dict.fromkeys(jaxpr.constvars, CONSTANT)

    def flow_of(atom: Any) -> Flow:
        return CONSTANT if is_literal(atom) else known[atom]

    around = discovery.scope
    for index, equation in enumerate(jaxpr.eqns):
        inputs = [flow_of(atom) for atom in equation.invars]
        discovery.scope = around + scope_of(equation)
        entry, outputs = _analyse_equation(equation, inputs, discovery, scans)
        if entry is not None:
            plan.entries[index] = entry
        known.update(zip(equation.outvars, outputs))
    discovery.scope = around
    return plan, [flow_of(atom) for atom in jaxpr.outvars]


def _analyse_equation(
    equation: Any, inputs: list[Flow], discovery: Discovery, scans: tuple[int, ...]
) -> tuple[Site | Nested | None, list[Flow]]:
    name, merged = equation.primitive.name, merge(inputs)
    unknown: list[Flow] = [DATA] * len(equation.outvars)
    if name in ELEMENTWISE:
        return None, inputs
    if merged != DATA:  # a computation on parameters alone makes a kernel, whatever it holds
        discovery.unassigned += _inside_kernel(equation, merged, discovery, math.prod(scans))
        return None, [_after(equation, merged)] * len(equation.outvars)
    if name in CONTRACTIONS:
        return _site(equation, inputs, discovery, scans), unknown
    if name == "gather" and isinstance(inputs[0], Origin):
        return embedding_site(equation, inputs[0], discovery, scans), unknown
    if name in JIT or name in REMAT:
        plan, outputs = analyse(equation.params["jaxpr"], inputs, discovery, scans)
        return (Nested("jit" if name in JIT else "remat", plan) if plan.entries else None), outputs
    if name == "scan":
        plan = _scan_body(equation, inputs, discovery, scans)
        return (Nested("scan", plan, len(scans)) if plan.entries else None), unknown
    if name == RAGGED:
        discovery.unassigned.append(_ragged(equation, inputs, discovery, scans))
    _refuse(equation, inputs, discovery, scans)
    return None, unknown


def _after(equation: Any, flow: Flow) -> Flow:
    """The flow of what an equation makes of parameters alone: their recipe grows by it, unless it is but a cast."""
    if not isinstance(flow, Origin) or equation.primitive.name == "convert_element_type":
        return flow
    literals = [str(atom) for atom in equation.invars if is_literal(atom)]
    return replace(flow, recipe=hash((flow.recipe, equation.primitive.name, str(equation.params), *literals)))


def _inside_kernel(equation: Any, flow: Flow, discovery: Discovery, executions: int) -> Iterator[Unassigned]:
    """The contractions of an equation that sees no data, such as the product of LoRA's two factors."""
    if equation.primitive.name in (*CONTRACTIONS, RAGGED):
        source = "constants" if flow == CONSTANT else "parameters"
        yield _unassigned(equation, f"it is computed from {source} alone, not from the input", discovery, executions)
    executions *= equation.params["length"] if equation.primitive.name == "scan" else 1
    for inner in core.jaxprs_in_params(equation.params):
        for nested in open_jaxpr(inner)[0].eqns:
            yield from _inside_kernel(nested, flow, discovery, executions)


def _ragged(equation: Any, inputs: list[Flow], discovery: Discovery, scans: tuple[int, ...]) -> Unassigned:
    found = _unassigned(equation, "it is a ragged dot, which is not supported", discovery, math.prod(scans))
    kernels = [i for i, flow in enumerate(inputs[:2]) if isinstance(flow, Origin)]
    if not kernels:
        return found
    origin = inputs[kernels[0]]
    assert isinstance(origin, Origin)
    name, _ = discovery.claim(origin, equation.invars[kernels[0]].aval.shape)
    return replace(found, name=name, refused=True)


def _site(equation: Any, inputs: list[Flow], discovery: Discovery, scans: tuple[int, ...]) -> Site | None:
    operand = next((i for i, flow in enumerate(inputs[:2]) if isinstance(flow, Origin)), None)
    is_image = equation.primitive.name == "conv_general_dilated" and operand == 0
    if operand is None or is_image:
        found = _unassigned(equation, _why_no_kernel(inputs, is_image), discovery, math.prod(scans))
        site = product_site(equation, discovery, scans) if all(flow == DATA for flow in inputs[:2]) else None
        discovery.unassigned.append(replace(found, optional=site.base if site else ""))
        return site
    origin = inputs[operand]
    assert isinstance(origin, Origin)
    base, path = discovery.claim(origin, equation.invars[operand].aval.shape)
    return kernel_site(base, path, describe(equation, operand), origin, scans)


def _why_no_kernel(inputs: list[Flow], is_image: bool) -> str:
    if is_image:
        return "the parameter is the image of the convolution, not its kernel"
    if all(flow == DATA for flow in inputs[:2]):
        return "both operands depend on the input (or on what a loop carries, such as its counter)"
    return "one operand is a constant: if it is a kernel that the function closes over, pass it in params"


def _scan_body(equation: Any, inputs: list[Flow], discovery: Discovery, scans: tuple[int, ...]) -> Plan:
    """Constants keep their flow and slices gain this scan's level. Carries are data: what is carried is never a
    kernel.
    """
    consts, carries = scan_counts(equation.params)
    slices = [
        replace(flow, levels=flow.levels | {len(scans)}) if isinstance(flow, Origin) else flow
        for flow in inputs[consts + carries :]
    ]
    flows: list[Flow] = [*inputs[:consts], *[DATA] * carries, *slices]
    return analyse(equation.params["jaxpr"], flows, discovery, (*scans, equation.params["length"]))[0]


def _refuse(equation: Any, inputs: list[Flow], discovery: Discovery, scans: tuple[int, ...]) -> None:
    """Reports the layers and contractions inside an equation that must be run as it stands."""
    name = equation.primitive.name
    where = OPAQUE.get(name, f"the higher-order primitive '{name}', which the interpreter does not know")
    for inner, flows in _opaque_jaxprs(equation, inputs):
        found = Discovery(discovery.shapes, discovery.examples, uses=dict(discovery.uses), scope=discovery.scope)
        plan, _ = analyse(inner, flows, found, scans)
        for site in plan.sites():
            count = discovery.per_example(site.contraction.macs * site.calls * math.prod(site.iterations))
            refused = Unassigned(site.base, f"it is inside {where}", count, _source(equation), refused=True)
            (discovery.hidden if is_optional(site.base) else discovery.unassigned).append(refused)
        discovery.hidden += found.hidden
        # Nobody says which of an unknown primitive's operands are parameters, so any contraction in it may be a layer.
        discovery.unassigned += found.unassigned if name in OPAQUE else [_refused(u, where) for u in found.unassigned]


def _opaque_jaxprs(equation: Any, inputs: list[Flow]) -> Iterator[tuple[Any, list[Flow]]]:
    """The inner jaxprs with the flows of their inputs, as far as they are known."""
    params = equation.params
    if equation.primitive.name == "cond":
        yield from ((branch, inputs[1:]) for branch in params["branches"])
    elif equation.primitive.name == "while":
        consts, carries = inputs[params["cond_nconsts"] :], len(open_jaxpr(params["body_jaxpr"])[0].outvars)
        yield params["body_jaxpr"], [*consts[: params["body_nconsts"]], *[DATA] * carries]
        yield params["cond_jaxpr"], [*inputs[: params["cond_nconsts"]], *[DATA] * carries]
    else:
        for inner in core.jaxprs_in_params(params):
            arity = len(open_jaxpr(inner)[0].invars)
            yield inner, inputs if arity == len(inputs) else [DATA] * arity


def _refused(found: Unassigned, where: str) -> Unassigned:
    return Unassigned(found.name, f"it is inside {where}", found.macs, found.source, refused=True)


def _unassigned(equation: Any, reason: str, discovery: Discovery, executions: int) -> Unassigned:
    count = discovery.per_example(macs(equation) * executions)
    return Unassigned(equation.primitive.name, reason, count, _source(equation))


def _source(equation: Any) -> str:
    return source_info_util.summarize(equation.source_info)


__all__ = ["analyse", "layer_name"]
