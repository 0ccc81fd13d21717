"""Goes through a model segment by segment, with the inputs that each sees in float and after quantization."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.graph import Call, Handler
from qresearch.graph.handlers import identity
from qresearch.graph.layer import is_optional
from qresearch.graph.segments import Segment, segments
from qresearch.programs import compiled, run
from qresearch.ptq.state import Quantized
from qresearch.qmodel import Params, QParams, QuantizedModel
from qresearch.units import Unit, base_name, corrected_input

BATCH = 64  # examples that a segment runs at once


class Layer(NamedTuple):
    """One layer at work. weight: the kernel to quantize, in the contraction's layout; inputs: what it sees after the
    layers before it are quantized, before its own input is. Earlier methods may have changed both (``CORRECTIONS``).
    float_weight, float_inputs: those of the float model. Inputs are [examples, ...].
    """

    unit: Unit
    row: int
    weight: Float[Array, "..."]
    float_weight: Float[Array, "..."]
    inputs: Float[Array, "examples ..."]
    float_inputs: Float[Array, "examples ..."]

    def quantized_inputs(self, own: dict[str, Any], bits: Float[Array, "2"]) -> Float[Array, "examples ..."]:
        """The inputs through this layer's own input quantizer."""
        quantizer = self.unit.input
        return self.inputs if quantizer is None else run(quantizer.apply, own["input"], self.inputs, bits[1])


class Stage(NamedTuple):
    """One segment at work, as ``Layer``. number: which one; size: of the batches it takes. units: its layers, with
    their rows in bits. targets: what it gives in float.
    """

    number: int
    size: int
    segment: Segment
    units: tuple[tuple[int, Unit], ...]
    inputs: Float[Array, "examples ..."] | Float[np.ndarray, "examples ..."]
    float_inputs: Float[Array, "examples ..."] | Float[np.ndarray, "examples ..."]
    targets: Float[np.ndarray, "examples ..."]

    def kernels(self, params: Params) -> dict[str, Array]:
        """The float kernel of every layer, in its contraction's layout, by the name of its unit."""
        found = _run(self.segment, _float_weight, params, self.float_inputs[: self.size], None, self.size)[1]
        owners = {use.name: unit.layer.name for _, unit in self.units for use in unit.uses}
        return {owners[name]: jnp.asarray(recorded[0]) for name, recorded in found.items() if name in owners}


def visit_layers(quantized: Quantized, visit: Callable[[Layer, QParams], dict[str, Any]]) -> QParams:
    """Calls ``visit(layer, qparams)`` for every layer in order; it returns that layer's new qparams.

    A layer's inputs come from the layers before it with what their visits returned. A kernel that is used in several
    segments is visited in the first.
    """
    done: set[str] = set()

    def whole(stage: Stage, qparams: QParams) -> QParams:
        kernels = stage.kernels(quantized.params)
        floats = _run(stage.segment, _float_input, quantized.params, stage.float_inputs, None, stage.size)[1]
        for row, unit in stage.units:
            name, states = unit.layer.name, _states(quantized, qparams)
            if name in done or is_optional(name):  # products and look-ups have no kernel and input to set against it
                continue
            done.add(name)
            recorder = _recorder(quantized.model)
            found = _run(stage.segment, recorder, quantized.params, stage.inputs, states, stage.size)[1]
            inputs = corrected_input(unit, qparams[name], _merged(found, unit))
            weight = qparams[name].get("kernel", kernels[name])
            layer = Layer(unit, row, weight, kernels[name], inputs, _merged(floats, unit))
            qparams = _aligned({**qparams, name: visit(layer, qparams)}, stage, quantized.params)
        return qparams

    return visit_segments(quantized, whole)


def visit_segments(quantized: Quantized, visit: Callable[[Stage, QParams], QParams], batch: int = BATCH) -> QParams:
    """Calls ``visit(stage, qparams)`` for every segment in order; it returns the qparams with its layers' new ones.

    Examples that do not fill a last batch are left out.
    """
    model, params, qparams = quantized.model, quantized.params, quantized.qparams
    size = min(batch, len(quantized.x))
    x = quantized.x[: len(quantized.x) // size * size]
    through = functools.partial(_run, size=size)
    inputs = float_inputs = x
    units = {use.name: (row, unit) for row, unit in enumerate(model.units) for use in unit.uses}
    for number, segment in enumerate(model_segments(quantized, size)):
        own = tuple(dict.fromkeys(units[name] for name in segment.layers if name in units))
        targets = through(segment, identity, params, float_inputs, None)[0]
        if own:
            stage = Stage(number, size, segment, own, inputs, float_inputs, targets)
            qparams = _aligned(visit(stage, qparams), stage, params)
        inputs = through(segment, model.handler, params, inputs, _states(quantized, qparams))[0]
        float_inputs = targets
    return qparams


def _aligned(qparams: QParams, stage: Stage, params: Params) -> QParams:
    """The qparams where all iterations of a scanned layer have the corrections that one of them has: those that change
    nothing where it has none.
    """
    groups: dict[str, list[str]] = {}
    for _, unit in stage.units:
        if "@" in unit.layer.name:
            groups.setdefault(base_name(unit.layer.name), []).append(unit.layer.name)
    if not any(len({frozenset(qparams[name]) for name in names}) > 1 for names in groups.values()):
        return qparams
    kernels = stage.kernels(params)
    found = dict(qparams)
    for names in groups.values():
        given = {key: value for name in names for key, value in qparams[name].items()}
        for name in names:
            neutral = {key: _neutral(key, given[key], kernels[name]) for key in given if key not in qparams[name]}
            found[name] = {**qparams[name], **neutral}
    return found


def _neutral(correction: str, like: Array, kernel: Array) -> Array:
    if correction == "kernel":
        return kernel
    if correction == "rotation":
        return jnp.eye(len(like), dtype=like.dtype)
    return jnp.ones_like(like) if correction == "divisor" else jnp.zeros_like(like)


def model_segments(quantized: Quantized, size: int) -> tuple[Segment, ...]:
    """The segments of a model for batches of this size: a jaxpr fixes its shapes."""
    params, x = quantized.params, quantized.x[:size]
    return segments(quantized.model.graph(params, x), params)


def _float_weight(call: Call) -> tuple[Array, Array]:
    return call.contract(call.weight, call.input), call.weight


def _float_input(call: Call) -> tuple[Array, Array]:
    return call.contract(call.weight, call.input), call.input


@functools.lru_cache(maxsize=8)
def _recorder(model: QuantizedModel) -> Handler:
    """The quantizing handler, which also gives every layer's input as it arrives."""

    def handler(call: Call) -> tuple[Array, Array]:
        return model.handler(call)[0], call.input

    return handler


def _states(quantized: Quantized, qparams: QParams) -> dict[str, Any]:
    rows = enumerate(quantized.model.units)
    entries = {unit: {"qparams": qparams[unit.layer.name], "bits": quantized.bits[row]} for row, unit in rows}
    return {use.name: state for unit, state in entries.items() for use in unit.uses}


def _run(segment: Segment, handler: Any, params: Any, inputs: Any, states: Any, size: int) -> tuple[Any, Any]:
    """The segment over all examples in batches; values and aux on the host, joined along the examples."""
    names = tuple(name for name in segment.layers if states is not None and name in states)
    # By position and not by name, so that blocks alike are one program.
    parameters, own = segment.parameters(params), [states[name] for name in names]

    def step(parameters: Any, value: Any, own: Any) -> tuple[Any, list[Any]]:
        value, aux = segment.run_on(handler, parameters, value, dict(zip(names, own)))
        return value, [aux.get(name) for name in segment.layers]

    program = compiled(step, (parameters, inputs[:size], own))
    found = [program(parameters, inputs[i : i + size], own) for i in range(0, len(inputs), size)]
    value = np.concatenate([np.asarray(part[0]) for part in found])
    columns = zip(segment.layers, zip(*(part[1] for part in found)))
    aux = {name: np.concatenate(parts, axis=1) for name, parts in columns if parts[0] is not None}
    return value, aux


def _merged(recorded: dict[str, np.ndarray], unit: Unit) -> Float[Array, "examples ..."]:
    """What all uses of a layer saw, [calls, batch, ...] each, along one axis of examples."""
    parts = [recorded[use.name] for use in unit.uses if use.name in recorded]
    return jnp.asarray(np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts]))
