"""A frozen model: what is stored of it, and how it is run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qresearch.errors import GraphError, did_you_mean
from qresearch.frozen.execute import EXECUTIONS, frozen_output
from qresearch.frozen.layer import FrozenLayer
from qresearch.frozen.weight_only import kernel_weights
from qresearch.graph import Call, Handler
from qresearch.graph.trace import parameter_paths
from qresearch.kernels import KernelWeights
from qresearch.numerics.codes import decode
from qresearch.numerics.fixed_point import RESCALES
from qresearch.numerics.packing import QTensor, from_qtensor
from qresearch.qmodel import Params, QuantizedModel
from qresearch.units import CORRECTIONS, Unit, base_name

Arrays = dict[str, Any]  # {"params": {path: array}, "layers": {layer name: Stored}}
Stored = dict[str, Any]  # weight: QTensor, float kernel, or a product's qparams; input: qparams; and ``CORRECTIONS``


class FrozenHandler(Protocol):
    """``handler(layer, unit, call, stored) -> output`` of a layer's call; ``stored``: its entry of the arrays."""

    def __call__(self, layer: FrozenLayer, unit: Unit, call: Call, stored: Stored, /) -> Array: ...


@dataclass(frozen=True, eq=False)
class Frozen:
    """A quantized model at one allocation, as it is stored and deployed. Build with ``freeze``.

    layers: how each is computed, in the order of ``model.layers``. arrays: all that is stored: the packed kernels, what
    quantizes the inputs, and those parameters that are still needed in float (biases, BatchNorm, layers in float).
    shapes: of all parameters. requantize: "float" or "fixed", see ``RESCALES``.
    """

    model: QuantizedModel
    layers: tuple[FrozenLayer, ...]
    arrays: Arrays = field(repr=False)
    shapes: Any = field(repr=False)
    requantize: str = "float"

    def apply(self, x: Any, execution: str = "integer") -> Any:
        """The outputs for the batch x, compiled. execution: one of ``EXECUTIONS``."""
        if execution not in EXECUTIONS:
            raise GraphError(f"unknown execution '{execution}'{did_you_mean(execution, EXECUTIONS)}")
        return _compiled(self, execution)(self.arrays, x)

    def forward(self, arrays: Arrays, x: Any, execution: str = "integer") -> Any:
        """``apply`` as a pure function of the arrays: to be compiled, differentiated in x, or exported."""
        params = self._params(arrays)
        states: dict[str, Any] = {}
        for unit, layer in zip(self.model.units, self.layers):
            if layer.path != "float" or arrays["layers"][layer.name]:
                state = _state(unit, layer, arrays["layers"][layer.name])
                states |= {use.name: state for use in unit.uses}
        return self.model.graph(params, x).run(_handler(self, execution), params, x, states)[0]

    def prepared(self) -> Frozen:
        """The same model to be served, no longer to be stored: dense layers that are weight-only hold their kernels as
        ``KernelWeights``, which ``weight_only_dot`` reads packed. On CUDA that is a kernel of its own; elsewhere XLA
        decodes them.
        """

        def ready(unit: Unit, layer: FrozenLayer) -> Stored:
            stored = self.arrays["layers"][layer.name]
            if layer.path != "weight_only" or "@" in layer.name or len(unit.uses) > 1:
                return stored
            weights = kernel_weights(unit.layer.contraction, stored["weight"])
            return stored if weights is None else {**stored, "weight": weights}

        layers = {layer.name: ready(unit, layer) for unit, layer in zip(self.model.units, self.layers)}
        return replace(self, arrays={**self.arrays, "layers": layers})

    def _params(self, arrays: Arrays) -> Params:
        """The parameters, with zeros for those that nothing depends on any more."""
        leaves, structure = jax.tree.flatten(self.shapes)
        known = arrays["params"]
        found = [
            known[path] if path in known else jnp.zeros(leaf.shape, leaf.dtype)
            for path, leaf in zip(parameter_paths(self.shapes), leaves)
        ]
        return jax.tree.unflatten(structure, found)


def run_frozen(frozen: Frozen, handler: FrozenHandler, arrays: Arrays, x: Any) -> Any:
    """The outputs with every layer computed by ``handler``. GraphError for layers inside a scan: one program for all of
    its iterations cannot be told which one's arrays it is given.
    """
    params = frozen._params(arrays)
    known = {use.name: (layer, unit) for layer, unit in zip(frozen.layers, frozen.model.units) for use in unit.uses}
    scanned = next((name for name in known if "@" in name), None)
    if scanned is not None:
        raise GraphError(f"layer {scanned} is one of a scan's iterations, which have no program of their own")

    def handle(call: Call) -> tuple[Array, None]:
        if call.site.base not in known:
            return call.contract(call.weight, call.input), None
        layer, unit = known[call.site.base]
        return handler(layer, unit, call, arrays["layers"][layer.name]), None

    return frozen.model.graph(params, x).run(handle, params, x)[0]


@functools.lru_cache(maxsize=64)
def _compiled(frozen: Frozen, execution: str) -> Callable[[Arrays, Any], Any]:
    return jax.jit(functools.partial(frozen.forward, execution=execution))


@functools.lru_cache(maxsize=64)
def _handler(frozen: Frozen, execution: str) -> Handler:
    """The same object for the same arguments: a handler is a key of compiled scans."""
    contract, rescale = EXECUTIONS[execution], RESCALES[frozen.requantize]
    known = {base_name(use.name): (u, f) for u, f in zip(frozen.model.units, frozen.layers) for use in u.uses}

    def run_layer(call: Call) -> tuple[Array, None]:
        if call.state is None:
            return call.contract(call.weight, call.input), None
        return frozen_output(*known[call.site.base], contract, rescale, call), None

    return run_layer


def _state(unit: Unit, layer: FrozenLayer, stored: Stored) -> dict[str, Any]:
    """What a layer's calls are given: codes to multiply, or a decoded kernel, beside what training gives them too."""
    qparams = {"input": stored.get("input"), **{name: stored[name] for name in CORRECTIONS if name in stored}}
    state: dict[str, Any] = {"bits": jnp.asarray([layer.weight_bits, layer.input_bits], jnp.float32)}
    weight = stored.get("weight")
    if unit.layer.contraction.product:
        qparams["weight"] = weight
    elif isinstance(weight, KernelWeights):
        state["packed"] = weight
    elif isinstance(weight, QTensor) and layer.path == "integer":
        state["weight"] = from_qtensor(weight)
        state["kernel"] = decode(state["weight"]).reshape(unit.layer.contraction.weight_shape)
    elif isinstance(weight, QTensor):
        state["kernel"] = decode(from_qtensor(weight)).reshape(unit.layer.contraction.weight_shape)
    elif weight is not None:
        state["kernel"] = weight
    elif layer.weight_bits == 0:
        state["kernel"] = jnp.zeros(unit.layer.contraction.weight_shape, jnp.float32)
    return state | {"qparams": qparams}
