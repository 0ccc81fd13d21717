"""The loss as a function of what is added to the operands of every layer, and what quantization adds to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qresearch.graph import Call
from qresearch.graph.handlers import record
from qresearch.sensitivities.subject import FLOAT, Sensitivity, Subject

OPERANDS = ("weight", "input")


class Deltas(NamedTuple):
    """What is added. weight: to the kernel of every layer, by its name; input: to the input of every use of a kernel,
    by the use's name.
    """

    weight: dict[str, Array]
    input: dict[str, Array]


class Perturbation(NamedTuple):
    """``loss(deltas, params, x, y) -> (losses [example], {use: recorded operands})``; outputs: the same without the
    loss; zeros: deltas for such an x.
    """

    loss: Callable[[Deltas, Any, Array, Array], tuple[Float[Array, "example"], dict[str, Any]]]
    outputs: Callable[[Deltas, Any, Array], tuple[Array, dict[str, Any]]]
    zeros: Callable[[Any, Array], Deltas]


def perturbation(subject: Subject) -> Perturbation:
    """Of the float model, at the layers that have quantizers. x is raw: it is prepared here."""
    model, task, prepare = subject.model, subject.task, subject.prepare

    def handler(call: Call) -> tuple[Array, dict[str, Array]]:
        if call.state is None:
            return call.contract(call.weight, call.input), {}
        weight = call.weight + call.state["weight"].reshape(call.weight.shape).astype(call.weight.dtype)
        x = call.input + call.state["input"].astype(call.input.dtype)
        return call.contract(weight, x), {"weight": call.weight, "input": call.input}

    def outputs(deltas: Deltas, params: Any, x: Array) -> tuple[Array, dict[str, Any]]:
        inputs = prepare(x)
        states = {
            use.name: {"weight": deltas.weight[unit.layer.name], "input": deltas.input[use.name]}
            for unit in model.units
            for use in unit.uses
        }
        return model.graph(params, inputs).run(handler, params, inputs, states)

    def loss(deltas: Deltas, params: Any, x: Array, y: Array) -> tuple[Array, dict[str, Any]]:
        found, recorded = outputs(deltas, params, x)
        return task.loss(found, y), recorded

    def zeros(params: Any, x: Array) -> Deltas:
        def shapes(params: Any, x: Array) -> Any:
            inputs = prepare(x)
            return model.graph(params, inputs).run(record, params, inputs)[1]

        found = jax.eval_shape(shapes, params, x)

        def zero(name: str, operand: str) -> Array:
            leaf = found[name][operand]  # [calls, ...]: all calls of one site share a delta
            return jnp.zeros(leaf.shape[1:], leaf.dtype)

        uses = [use.name for unit in model.units for use in unit.uses]
        weights = {unit.layer.name: zero(unit.uses[0].name, "weight") for unit in model.units}
        return Deltas(weights, {name: zero(name, "input") for name in uses})

    return Perturbation(loss, outputs, zeros)


def rebatched(subject: Subject, size: int) -> Iterator[tuple[Array, Array]]:
    """The subject's examples in batches of ``size``; what fills no batch is left out, unless there is no other."""
    count = subject.batches.examples
    size = min(size, count)
    targets = subject.batches.targets.reshape(-1, *subject.batches.targets.shape[2:])
    inputs = np.concatenate([np.asarray(x) for x in subject.batches.inputs])
    for start in range(0, count // size * size, size):
        yield jnp.asarray(inputs[start : start + size]), targets[start : start + size]


def widths_of(subject: Subject) -> tuple[float, ...]:
    """All widths that options name, ascending."""
    return tuple(sorted({float(width) for option in subject.options for width in option}))


def quantization_errors(
    subject: Subject, recorded: dict[str, Any], qparams: Sequence[Any]
) -> dict[str, dict[str, list[list[Array]]]]:
    """{layer: {operand: [for every width, for every use, Q(v) - v]}}, zero where there is no quantizer.

    qparams: one set for each width of ``widths_of``. A kernel's error is that of its first use.
    """
    found: dict[str, dict[str, list[list[Array]]]] = {}
    for unit in subject.model.units:
        own: dict[str, list[list[Array]]] = {"weight": [], "input": []}
        for width, parameters in zip(widths_of(subject), qparams):
            sites = parameters[unit.layer.name]
            for operand, quantizer in (("weight", unit.weight), ("input", unit.input)):
                uses = unit.uses[:1] if operand == "weight" else unit.uses
                values = [recorded[use.name][operand][0] for use in uses]
                own[operand].append(
                    [
                        jnp.zeros_like(v)
                        if quantizer is None or width >= FLOAT
                        else quantizer.apply(sites[operand], v, jnp.float32(width)) - v
                        for v in values
                    ]
                )
        found[unit.layer.name] = own
    return found


def squared_errors(subject: Subject, part: Perturbation) -> Callable[..., tuple[dict[str, Array], Array]]:
    """(params, qparams, x, y) -> ({operand: ‖Q(v) - v‖² [layer, width]}, mean loss); of inputs, the mean over examples.

    qparams: as in ``quantization_errors``.
    """

    @jax.jit
    def step(params: Any, qparams: Any, x: Array, y: Array) -> tuple[dict[str, Array], Array]:
        losses, recorded = part.loss(part.zeros(params, x), params, x, y)
        errors = quantization_errors(subject, recorded, qparams)

        def table(operand: str, examples: int) -> Array:
            layers = [errors[unit.layer.name][operand] for unit in subject.model.units]
            return jnp.stack([jnp.stack([_total_square(uses) for uses in widths]) for widths in layers]) / examples

        return {"weight": table("weight", 1), "input": table("input", len(x))}, jnp.mean(losses)

    return step


def _total_square(arrays: Sequence[Array]) -> Array:
    return sum((jnp.sum(jnp.square(array.astype(jnp.float32))) for array in arrays), jnp.float32(0))


def table_of_operands(
    subject: Subject,
    weight: Float[np.ndarray, "sample layer width"],
    input: Float[np.ndarray, "sample layer width"],
    float_loss: float,
) -> Sensitivity:
    """The table in which an option costs the sum of what its two widths cost."""
    column = {width: i for i, width in enumerate(widths_of(subject))}
    values = []
    for layer, option in subject.pairs():
        widths = subject.options[option]
        values.append(weight[:, layer, column[float(widths[0])]] + input[:, layer, column[float(widths[1])]])
    return subject.table(values, float_loss)
