"""Reconstruction of segments: the rounding of all their weights and the ranges of all their inputs are learned together
so that the segment's output stays what it was.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from qresearch.graph import Call, Handler
from qresearch.ptq.fisher import output_importance
from qresearch.ptq.optimise import Recipe, beta_at, minimise
from qresearch.ptq.sequence import Stage, visit_segments
from qresearch.ptq.soft_rounding import indecision, is_rounded, rounded, soft, start, weight_grid
from qresearch.ptq.state import Quantized, with_kernel
from qresearch.qmodel import QParams
from qresearch.units import Unit, base_name, corrected_input, corrected_output, fake_quantize

RANGE_FIELDS = {"scale", "low", "high"}  # the qparams that a factor on an input's range multiplies


class Objective(NamedTuple):
    """fisher: squared errors are weighted by ``output_importance``. drop: the probability that an element of an input
    is not quantized in a step. range_rate: Adam's learning rate for the logarithm of the factor on input ranges.
    """

    fisher: bool
    drop: float
    range_rate: float


class _Learned(NamedTuple):
    """One layer's: logits of its rounding, None where its weight is not rounded; log factor of its input's range."""

    logits: Array | None
    factor: Float[Array, ""]


def reconstruct_segments(quantized: Quantized, recipe: Recipe, objective: Objective, key: Array) -> Quantized:
    """Goes through the segments in order and gives every layer the kernel and the input range that serve its segment.

    A kernel that several segments share is learned in the first of them.
    """
    importance = output_importance(quantized, recipe.batch) if objective.fisher else None
    done: set[str] = set()

    def visit(stage: Stage, qparams: QParams) -> QParams:
        units = tuple((row, unit) for row, unit in stage.units if unit.layer.name not in done)
        done.update(unit.layer.name for _, unit in units)
        weights = None if importance is None else importance[stage.number]
        found = _reconstruct(quantized, stage, units, qparams, weights, recipe, objective, key)
        return {**qparams, **found}

    return quantized._replace(qparams=visit_segments(quantized, visit, recipe.batch))


def _reconstruct(
    quantized: Quantized,
    stage: Stage,
    units: tuple[tuple[int, Unit], ...],
    qparams: QParams,
    importance: Any,
    recipe: Recipe,
    objective: Objective,
    key: Array,
) -> dict[str, dict[str, Any]]:
    """The new qparams of these layers. Layers of the segment that are not among them keep what they have."""
    kernels, shapes, fixed, grids, learned = stage.kernels(quantized.params), [], [], [], []
    for row, unit in stage.units:
        own, bits = qparams[unit.layer.name], quantized.bits[row]
        free = (row, unit) in units and is_rounded(unit, bits)
        kernel = own.get("kernel", kernels[unit.layer.name])
        grid = weight_grid(unit, own["weight"], kernel, bits[0]) if free else None
        fixed.append({"qparams": own, "bits": bits})
        grids.append(grid)
        shapes.append(kernel.shape)
        learned.append(_Learned(None if grid is None else start(grid), jnp.float32(0)))
    handler = _soft_handler(stage, objective.drop)

    def loss(learned: Any, constants: Any, batch: Any, progress: Array, key: Array) -> Array:
        (x, float_x, y, weight), (parameters, fixed, grids) = batch, constants
        mix, drop = jax.random.split(key)
        if objective.drop:
            x = jnp.where(jax.random.bernoulli(mix, objective.drop, x.shape), float_x, x)
        states: dict[str, Any] = {}
        for i, (_, unit) in enumerate(stage.units):
            grid, own = grids[i], learned[i]
            soft_kernel = None if grid is None else rounded(grid, soft(own.logits), shapes[i])
            state = _with_factor(fixed[i], own.factor) | {"soft": soft_kernel, "drop": jax.random.fold_in(drop, i)}
            states |= {use.name: state for use in unit.uses if use.name in stage.segment.layers}
        found = jax.tree.leaves(stage.segment.run_on(handler, parameters, x, states)[0])[0]
        error = found.shape[-1] * jnp.mean(weight * jnp.square(found - y))
        beta = beta_at(progress, recipe.warmup)
        undecided = sum((indecision(own.logits, beta) for own in learned if own.logits is not None), jnp.float32(0))
        return error + jnp.where(progress < recipe.warmup, 0.0, recipe.weight * undecided)

    rounding, ranges = jnp.float32(recipe.learning_rate), jnp.float32(objective.range_rate)
    rates = [_Learned(None if grid is None else rounding, ranges) for grid in grids]
    ones = jnp.ones((len(stage.targets), *(1 for _ in stage.targets.shape[1:])))
    examples = (stage.inputs, stage.float_inputs, stage.targets, ones if importance is None else importance)
    constants = (stage.segment.parameters(quantized.params), fixed, grids)
    best = minimise(loss, learned, constants, examples, recipe, rates, jax.random.fold_in(key, stage.number))
    new = {}
    for (row, unit), own, state, grid, shape in zip(stage.units, best, fixed, grids, shapes):
        if (row, unit) in units:
            found = _with_factor(state, own.factor)["qparams"]
            if grid is not None:
                found = with_kernel(found, rounded(grid, jnp.float32(soft(own.logits) >= 0.5), shape))
            new[unit.layer.name] = found
    return new


def _soft_handler(stage: Stage, probability: float) -> Handler:
    """Runs a layer with the softly rounded kernel of its state, its input quantized but for dropped elements."""
    units = {base_name(use.name): unit for _, unit in stage.units for use in unit.uses}

    def handler(call: Call) -> tuple[Array, None]:
        unit = units.get(call.site.base)
        if unit is None:
            return call.contract(call.weight, call.input), None
        weight, found = call.state["soft"], call.state["qparams"]
        learned = weight is not None
        if not learned:
            weight = fake_quantize(unit, "weight", found.get("kernel", call.weight), call)
        raw = corrected_input(unit, found, call.input)
        x = fake_quantize(unit, "input", raw, call)
        if probability:
            key = jax.random.fold_in(call.state["drop"], call.index)
            x = jnp.where(jax.random.bernoulli(key, probability, x.shape), raw, x)
        output = call.contract(weight, x)
        return output if learned else corrected_output(found, output), None

    return handler


def _with_factor(state: dict[str, Any], factor: Float[Array, ""]) -> dict[str, Any]:
    """A layer's state with the range of its input multiplied by exp(factor); unchanged for methods that keep none."""
    qparams = state["qparams"]
    found = qparams["input"]
    fields = RANGE_FIELDS.intersection(getattr(found, "_fields", ()))
    if fields:
        found = found._replace(**{field: getattr(found, field) * jnp.exp(factor) for field in fields})
    return {**state, "qparams": {**qparams, "input": found}}
