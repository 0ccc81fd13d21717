"""A function and its rules become a quantized model: layers to give bits to, calibration, fake-quantized execution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.cost import LayerCounts
from qresearch.errors import GraphError
from qresearch.graph import Call, Graph, Handler, Layer, Unassigned, trace
from qresearch.graph.handlers import record
from qresearch.graph.trace import Function, refuse
from qresearch.quantizers import Quantizer
from qresearch.quantizers.base import Factory
from qresearch.rules import Option, Rule, assign_rules, factories, stays_float
from qresearch.units import CORRECTIONS, Unit, base_name, build_units, calibrate_unit, quantized_output, unit_counts

Params = Any
# layer name -> {"weight", "input"} -> the method's qparams, None where float; and what PTQ found (``CORRECTIONS``)
QParams = dict[str, dict[str, Any]]
Bits = Float[Array, "layers 2"]  # (weight_bits, input_bits) of every layer; traced


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """``fn(params, x)`` with quantized layers. Bits are traced: one compiled ``apply`` serves every allocation.

    units: the layers with their quantizers. unassigned: contractions that are not layers, and why. rules: what it was
    built with. negative: (layer, "input" or "weight") of the data operands that were seen to take negative values. The
    float model's params are used unchanged. Build with ``quantize_model``.
    """

    fn: Function
    units: tuple[Unit, ...]
    unassigned: tuple[Unassigned, ...]
    rules: tuple[Rule, ...]
    graphs: dict[Any, Graph] = field(repr=False)
    negative: frozenset[tuple[str, str]] = frozenset()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the order of the rows of ``bits``."""
        return tuple(unit.layer for unit in self.units)

    @property
    def menus(self) -> tuple[tuple[Option, ...], ...]:
        """The options that the rules allow each layer; a layer with a single one is pinned."""
        return tuple(unit.rule.options() for unit in self.units)

    @property
    def example(self) -> Any:
        """Shapes and dtypes of an x that the model has been traced for. GraphError if it holds a random key."""
        structure, leaves = next(iter(self.graphs))
        if any(kind.startswith("key<") for _, kind, _ in leaves):
            raise GraphError("x holds a random key: give the function that predicts, not the one that trains")
        return jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in leaves])[1]

    @functools.cached_property
    def counts(self) -> LayerCounts:
        """What the costs of allocations are computed from, in the order of ``layers``."""
        return unit_counts(self.units)

    def init(self, params: Params, x: Any, bits: Bits) -> QParams:
        """Calibrates every site on the float model's tensors for the batch x, at its width.

        Under ``vmap`` over bits the model still runs once: only the calibration is repeated.
        """
        self._check_rows(bits)
        _, recorded = self.graph(params, x).run(record, params, x)
        return {unit.layer.name: calibrate_unit(unit, recorded, bits[i]) for i, unit in enumerate(self.units)}

    def apply(
        self,
        params: Params,
        qparams: QParams,
        x: Any,
        bits: Bits,
        key: Array | None = None,
        kernels: Mapping[str, Array] | None = None,
    ) -> Any:
        """fn(params, x) with every layer's weight and input fake-quantized. key: for stochastic methods only.

        kernels: by layer name, quantized before (see ``prequantize``) and taken as they are.
        """
        self._check_rows(bits)
        states: dict[str, Any] = {}
        for i, unit in enumerate(self.units):
            state = {"qparams": qparams[unit.layer.name], "bits": bits[i]}
            if key is not None:
                state["key"] = jax.random.fold_in(key, i)
            if kernels is not None and unit.layer.name in kernels:
                state["kernel"] = kernels[unit.layer.name]
            states |= {use.name: state for use in unit.uses}
        return self.graph(params, x).run(self.handler, params, x, states)[0]

    def forward(self, params: Params, own: tuple[QParams, Bits], x: Any) -> Any:
        """``apply`` in the form that ``evaluate`` calls: own is one allocation's (qparams, bits)."""
        return self.apply(params, own[0], x, own[1])

    @functools.cached_property
    def handler(self) -> Handler:
        """The interpreter's handler that fake-quantizes. State of a layer: qparams, bits [2] and perhaps a key."""
        units = {base_name(use.name): unit for unit in self.units for use in unit.uses}

        def quantize_layer(call: Call) -> tuple[Array, None]:
            unit = units.get(call.site.base)
            return (call.contract(call.weight, call.input) if unit is None else quantized_output(unit, call)), None

        return quantize_layer

    def graph(self, params: Params, x: Any) -> Graph:
        """The graph for inputs of x's shape: a jaxpr fixes its shapes, so each is traced once and kept."""
        key = _signature((params, x))
        if key not in self.graphs:
            self.graphs[key] = _asked(trace(self.fn, params, x), self.rules)
        return self.graphs[key]

    def learnable(self, qparams: QParams) -> Any:
        """A pytree of booleans like qparams: True for the leaves that training updates."""

        def mask(quantizer: Quantizer | None, site: Any) -> Any:
            return quantizer and type(site)(*(name in quantizer.learnable for name in site._fields))

        return {
            unit.layer.name: {
                "weight": mask(unit.weight, qparams[unit.layer.name]["weight"]),
                "input": mask(unit.input, qparams[unit.layer.name]["input"]),
                **{name: False for name in CORRECTIONS if name in qparams[unit.layer.name]},
            }
            for unit in self.units
        }

    def twin(self, fn: Function, params: Params, x: Any) -> QuantizedModel:
        """The same layers and quantizers in another function of the same params, such as its training mode.

        Memoized, like ``quantize_model``. GraphError if it lacks one of the layers or uses a kernel once more.
        """
        return _twin(self, fn, _Abstract((params, x)))

    def _check_rows(self, bits: Bits) -> None:
        # JAX clamps an index past the end: the last row would silently serve all layers that have none.
        if np.shape(bits) != (len(self.units), 2):
            raise GraphError(
                f"bits must have shape [{len(self.units)}, 2], one (weight_bits, input_bits) per layer, got"
                f" {list(np.shape(bits))}"
            )


def quantize_model(fn: Function, params: Params, x: Any, rules: Sequence[Rule] = (Rule(),)) -> QuantizedModel:
    """Finds the layers of fn(params, x) and gives each the quantizers of the first rule that matches its name.

    x: a calibration batch; its values decide which inputs are signed, where a rule leaves that open (a
    ``jax.ShapeDtypeStruct`` will do where none does). Equal arguments give the same object, so that jit does not
    compile again. GraphError for a rule that matches nothing or a kernel that cannot be reached.
    """
    rules, arguments = tuple(rules), _Abstract((params, x))
    graph = _trace_once(fn, arguments, rules)
    assigned = _assign(rules, graph)
    _refuse(graph, rules)
    undecided = any(_undecided(assigned[layer.name], layer) for layer in graph.layers if layer.name in assigned)
    negative = _negative_operands(graph, params, x) if undecided else frozenset()
    return _build(fn, arguments, rules, negative, factories(rules))


def sketch_model(
    fn: Function,
    params: Params,
    x: Any,
    rules: Sequence[Rule] = (Rule(),),
    negative: Collection[tuple[str, str]] = (),
) -> QuantizedModel:
    """``quantize_model`` without looking at values, for layers, menus and costs, or for a model that is stored.

    negative: the operands that take negative values (``QuantizedModel.negative``); other undecided ones are unsigned.
    """
    rules, arguments = tuple(rules), _Abstract((params, x))
    _refuse(_trace_once(fn, arguments, rules), rules)
    return _build(fn, arguments, rules, frozenset(negative), factories(rules))


class _Abstract:
    """Shapes and dtypes of a pytree, hashable: what a trace depends on."""

    def __init__(self, tree: Any) -> None:
        avals = jax.tree.map(_aval, tree)
        self.tree = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type), avals)
        self.signature = _signature(tree)

    def __hash__(self) -> int:
        return hash(self.signature)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Abstract) and self.signature == other.signature


def _trace_once(fn: Function, arguments: _Abstract, rules: Sequence[Rule]) -> Graph:
    return _asked(_traced(fn, arguments), rules)


@functools.lru_cache(maxsize=64)
def _traced(fn: Function, arguments: _Abstract) -> Graph:
    return trace(fn, *arguments.tree)


def _asked(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """The graph with the products and embedding look-ups that the rules ask for."""
    return graph.asking(frozenset(layer.name for layer in graph.optional if not stays_float(layer.name, rules)))


def _refuse(graph: Graph, rules: Sequence[Rule]) -> None:
    """Raises GraphError for a layer that the rules quantize, but that cannot be reached."""
    refuse([found for found in (*graph.unassigned, *graph.hidden) if not stays_float(found.name, rules)])


@functools.lru_cache(maxsize=64)
def _build(
    fn: Function,
    arguments: _Abstract,
    rules: tuple[Rule, ...],
    negative: frozenset[tuple[str, str]],
    _methods: tuple[Factory | None, ...],  # a name that a script has mended stands for another method: build anew
) -> QuantizedModel:
    graph = _trace_once(fn, arguments, rules)
    if not graph.layers and any(rule.quantizes for rule in rules):
        why = "".join(f"; {found.name} ({found.source}): {found.reason}" for found in graph.unassigned[:1])
        raise GraphError(f"the function has no layers: no contraction has a kernel from params{why}")
    units = build_units(graph.layers, _assign(rules, graph), negative)
    return QuantizedModel(fn, units, graph.unassigned, rules, {arguments.signature: graph}, negative)


@functools.lru_cache(maxsize=64)
def _twin(model: QuantizedModel, fn: Function, arguments: _Abstract) -> QuantizedModel:
    graph = _asked(trace(fn, *arguments.tree), model.rules)
    names, own = {layer.name for layer in graph.layers}, {use.name for unit in model.units for use in unit.uses}
    if own - names:
        raise GraphError(f"the other function lacks the layers {sorted(own - names)}; it must use the same kernels")
    kernels = {unit.layer.parameter for unit in model.units}
    known = {layer.name for other in model.graphs.values() for layer in other.layers}
    more = sorted(layer.name for layer in graph.layers if layer.parameter in kernels and layer.name not in known)
    if more:
        raise GraphError(f"the other function also uses {more}, which would stay in float; it must use them as often")
    return replace(model, fn=fn, unassigned=graph.unassigned, graphs={arguments.signature: graph})


def _assign(rules: Sequence[Rule], graph: Graph) -> dict[str, Rule]:
    layers = dict.fromkeys((*graph.layers, *graph.optional))  # those that are asked for are in both
    unreachable = [found.name for found in (*graph.unassigned, *graph.hidden) if found.refused]
    return assign_rules(rules, tuple(layers), unreachable)


def _undecided(rule: Rule, layer: Layer) -> bool:
    """Whether it depends on data which operands are signed."""
    sites = (rule.input, rule.weight) if layer.contraction.product else (rule.input,)
    return any(site is not None and site.signed is None for site in sites)


def _negative_operands(graph: Graph, params: Params, x: Any) -> frozenset[tuple[str, str]]:
    """(layer, operand) of the data operands that take negative values in the float model on the batch x."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((params, x))):
        raise GraphError(
            "signed=None needs a real calibration batch to look at: pass arrays, or set signed in the rule"
        )

    lowest = _lowest(graph)(params, x)
    found = ((name, operand, values) for name, operands in lowest.items() for operand, values in operands.items())
    # On the host: comparing on the device would be a few more programs to compile.
    return frozenset((name, operand) for name, operand, values in found if np.min(np.asarray(values)) < 0)


@functools.lru_cache(maxsize=64)
def _lowest(graph: Graph) -> Callable[[Params, Any], dict[str, dict[str, Array]]]:
    """The smallest value of every layer's data operands, compiled once per graph."""

    def minimum(call: Call) -> tuple[Array, dict[str, Array]]:
        data = {"input": call.input} | ({"weight": call.weight} if call.site.contraction.product else {})
        return call.contract(call.weight, call.input), {operand: jnp.min(x) for operand, x in data.items()}

    return jax.jit(lambda params, x: graph.run(minimum, params, x)[1])


def _signature(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((a.shape, str(a.dtype), a.weak_type) for a in map(_aval, leaves))


def _aval(leaf: Any) -> Any:
    """Shape, dtype and weak type: ``jnp.asarray(2.0)`` is weak, so that as a parameter it does not promote bfloat16."""
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
