"""Sites that are layers only where a rule asks: products of two data operands (attention's) and embedding look-ups."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax.extend import source_info_util

from qresearch.graph.contraction import describe, describe_gather
from qresearch.graph.dataflow import Discovery, Origin, layer_name
from qresearch.graph.layer import EMBEDDING, PRODUCT, is_optional
from qresearch.graph.plan import Nested, Plan, Site, kernel_site

_SCOPE = type(source_info_util.new_name_stack("scope").stack[0])  # a name stack also holds transforms, such as vmap


def product_site(equation: Any, discovery: Discovery, scans: tuple[int, ...]) -> Site | None:
    """The site of a ``dot_general`` of two data operands. Its iterations share one scale: it has no kernel to slice."""
    if equation.primitive.name != "dot_general" or not all(map(_is_float, equation.invars)):
        return None
    place = PRODUCT + (_place(discovery) or equation.primitive.name)
    contraction = replace(describe(equation, weight_operand=1), product=True)
    return Site(discovery.numbered(place), place, contraction, calls=math.prod(scans))


def embedding_site(equation: Any, origin: Origin, discovery: Discovery, scans: tuple[int, ...]) -> Site | None:
    """The site of a ``gather`` from a parameter, at indices that depend on the input."""
    if not _is_float(equation.invars[0]):
        return None
    base, path = discovery.claim(origin, equation.invars[0].aval.shape, EMBEDDING)
    return kernel_site(base, path, describe_gather(equation), origin, scans)


def scope_of(equation: Any) -> tuple[str, ...]:
    """The named scopes of an equation within its jaxpr, outermost first: in linen its modules.

    Without those that ``einsum`` makes of its formula.
    """
    stack = equation.source_info.name_stack.stack
    names = [part for entry in stack if isinstance(entry, _SCOPE) for part in entry.name.split("/")]
    return tuple(name.replace("#", "_").replace("@", "_") for name in names if "," not in name and "->" not in name)


def without_optional(plan: Plan, asked: frozenset[str] = frozenset()) -> Plan:
    """The plan with those optional sites alone that are asked for, by base name."""
    entries: dict[int, Site | Nested] = {}
    for position, entry in plan.entries.items():
        if isinstance(entry, Site):
            if not is_optional(entry.base) or entry.base in asked:
                entries[position] = entry
            continue
        inner = without_optional(entry.plan, asked)
        if inner.entries:
            entries[position] = replace(entry, plan=inner)
    return Plan(plan.jaxpr, plan.consts, entries)


def _place(discovery: Discovery) -> str:
    """The scope as a path beside those of the parameters: linen's begins with the name of the model itself."""
    heads = {layer_name(path).partition("/")[0] for path in discovery.shapes}
    start = next((i for i, name in enumerate(discovery.scope) if name in heads), 0)
    return "/".join(discovery.scope[start:])


def _is_float(atom: Any) -> bool:
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.floating))
