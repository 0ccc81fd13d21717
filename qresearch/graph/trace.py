"""Tracing a function to its graph: the layers it has, and how to run it with a handler."""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from qresearch.errors import GraphError
from qresearch.graph.dataflow import DATA, Discovery, Flow, Origin, layer_name
from qresearch.graph.discover import analyse
from qresearch.graph.interpreter import Handler, States, evaluate
from qresearch.graph.layer import Layer, Unassigned, is_optional
from qresearch.graph.optional import without_optional
from qresearch.graph.plan import Plan, Site

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Graph:
    """A traced ``fn(params, x)``. layers: in order of execution; unassigned: contractions that are not layers, and
    why. optional: products and embedding look-ups that ``asking`` makes layers; hidden: those that it cannot. complete:
    the plan with all optional sites.
    """

    plan: Plan
    layers: tuple[Layer, ...]
    unassigned: tuple[Unassigned, ...]
    output_tree: Any
    optional: tuple[Layer, ...]
    hidden: tuple[Unassigned, ...]
    complete: Plan = field(repr=False)

    def asking(self, names: frozenset[str]) -> Graph:
        """The graph with those of its ``optional`` layers that have these names; the same object for the same names."""
        return _asking(self, names) if names else self

    def run(self, handler: Handler, params: Any, x: Any, states: States | None = None) -> tuple[Any, States]:
        """(outputs of fn, aux by layer name) with every layer computed by ``handler``.

        states: by layer name; a handler gets None for a layer without an entry. Either all iterations of a scanned
        layer have one, of the same structure, or none has. Every leaf of an aux has a leading axis of the layer's
        calls.
        """
        stacked = stack_states(self.plan, states or {})
        outputs, aux = evaluate(self.plan, handler, stacked, jax.tree.leaves((params, x)))
        return jax.tree.unflatten(self.output_tree, outputs), unstack_aux(self.plan, aux)


def trace(fn: Function, params: Any, x: Any) -> Graph:
    """Traces fn(params, x) once, without running it. params and x: pytrees of arrays or ``jax.ShapeDtypeStruct``.

    macs of a layer are per example: per unit of the leading axis of x's first array.
    """
    paths = parameter_paths(params)
    # Of shapes alone, and without the mesh of the program in which this is asked for: others run the graph too.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*jax.tree.map(_shape, (params, x)))
    flows: list[Flow] = [Origin((path,)) for path in paths] + [DATA] * len(jax.tree.leaves(x))
    discovery = Discovery(dict(zip(paths, map(jnp.shape, jax.tree.leaves(params)))), _examples(x))
    plan, _ = analyse(closed, flows, discovery)
    every = tuple(layer for site in plan.sites() for layer in _layers_of(site, discovery))
    layers = tuple(layer for layer in every if not is_optional(layer.name))
    optional = tuple(layer for layer in every if is_optional(layer.name))
    return Graph(
        without_optional(plan),
        layers,
        tuple(discovery.unassigned),
        jax.tree.structure(shape),
        optional,
        tuple(discovery.hidden),
        plan,
    )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


@functools.lru_cache(maxsize=64)
def _asking(graph: Graph, names: frozenset[str]) -> Graph:
    # The iterations of a scanned look-up are one site: one of them asked for brings them all.
    bases = frozenset(name.partition("@")[0] for name in names)
    plan = without_optional(graph.complete, bases)
    known = {layer.name: layer for layer in (*graph.layers, *graph.optional)}
    return replace(
        graph,
        plan=plan,
        layers=tuple(known[name] for site in plan.sites() for name in layer_names(site)),
        unassigned=tuple(found for found in graph.unassigned if found.optional not in names),
    )


def find_layers(fn: Function, params: Any, x: Any) -> tuple[Layer, ...]:
    """The layers of fn(params, x), in the order of execution: see ``trace``.

    GraphError if a kernel is used where it cannot be quantized: in a cond, a while loop or a custom derivative rule.
    """
    graph = trace(fn, params, x)
    refuse(graph.unassigned)
    return graph.layers


def refuse(unassigned: Sequence[Unassigned]) -> None:
    """Raises GraphError for the first contraction whose kernel the interpreter cannot reach."""
    for found in unassigned:
        if found.refused:
            raise GraphError(
                f"layer {found.name} ({found.source}) cannot be quantized: {found.reason}; move it out, or leave it in"
                " float by a rule with weight and input None"
            )


def layer_names(site: Site) -> list[str]:
    """The names of the layers that a site stands for, in the order of its stacked axes."""
    indices = itertools.product(*(range(length) for length in site.iterations))
    return [site.base + "".join(f"@{i}" for i in index) for index in indices]


def _layers_of(site: Site, discovery: Discovery) -> list[Layer]:
    contraction, names = site.contraction, layer_names(site)
    macs = discovery.per_example(contraction.macs * site.calls)
    if contraction.product:  # nothing is stored, and nothing is shared
        return [Layer(name, site.parameter, contraction, macs, 0, site.calls, whole=False) for name in names]
    size = math.prod(contraction.weight_shape)
    whole = size * len(names) == math.prod(discovery.shapes[site.parameter])
    return [Layer(name, site.parameter, contraction, macs, size, site.calls, whole, site.recipe) for name in names]


def _examples(x: Any) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    return max(next((shape[0] for shape in shapes if shape), 1), 1)


def parameter_paths(params: Any) -> list[str]:
    """``params/Conv_0/kernel`` for every leaf. GraphError if two leaves have one name, or names hold our marks."""
    keys = [path for path, _ in jax.tree.leaves_with_path(params)]
    siblings = collections.Counter(path[:-1] for path in keys)
    # An nnx Variable's own ``value`` is no part of its name; a module's field ``value`` beside ``query`` is.
    wrapped = [len(path) > 1 and str(path[-1]) == ".value" and siblings[path[:-1]] == 1 for path in keys]
    paths = ["/".join(map(_part, path[:-1] if alone else path)) for path, alone in zip(keys, wrapped)]
    counts = collections.Counter(map(layer_name, paths))
    bad = [name for name, count in counts.items() if count > 1 or "#" in name or "@" in name]
    if bad:
        raise GraphError(f"parameter path '{bad[0]}' is not unique, or holds '#' or '@': rename it in params")
    return paths


def _part(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def stack_states(plan: Plan, states: States) -> States:
    """States by layer name to states by base name, with one leading axis per enclosing scan that iterates the site."""
    if not states:
        return {}
    stacked = {}
    for site in plan.sites():
        entries = [states[name] for name in layer_names(site) if name in states]
        if not entries:
            continue
        if not site.iterations:
            stacked[site.base] = entries[0]
            continue
        stacked[site.base] = jax.tree.map(
            lambda *leaves, lengths=site.iterations: jnp.stack(leaves).reshape(*lengths, *jnp.shape(leaves[0])),
            *entries,
        )
    return stacked


def unstack_aux(plan: Plan, aux: States) -> States:
    """Aux by base name to aux by layer name: an entry for every iteration."""
    unstacked = {}
    for site in plan.sites():
        indices = list(itertools.product(*(range(length) for length in site.iterations)))
        for name, index in zip(layer_names(site), indices):
            unstacked[name] = jax.tree.map(lambda leaf, index=index: leaf[index], aux[site.base])
    return unstacked
