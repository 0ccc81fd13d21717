"""Allocations that agree in their first layers share the work of these layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from qresearch.calibration import nearest, select_layer
from qresearch.data.dataset import Prepare
from qresearch.evaluation import Batches, Scores
from qresearch.graph.program import Shapes
from qresearch.graph.segments import Segment, segments
from qresearch.prequantized import Prequantized
from qresearch.programs import compiled
from qresearch.qmodel import Params, QuantizedModel
from qresearch.streaming import wait
from qresearch.tasks import Task


class Part(NamedTuple):
    """A segment of the model. rows: those of its layers in ``bits``, in the order of ``layers``, which are the names of
    their uses in the segment; owners: the names of their units.
    """

    segment: Segment
    layers: tuple[str, ...]
    owners: tuple[str, ...]
    rows: tuple[int, ...]


class Tree(NamedTuple):
    """Allocations in an order in which those with common prefixes are neighbours.

    order: [n], indices of allocations; bits: [n, layers, 2], in this order. start: [n], the first part in which each
    differs from the one before. saved: the share of the multiply-accumulates that need not be repeated.
    """

    parts: tuple[Part, ...]
    order: Int[np.ndarray, "n"]
    bits: Float[np.ndarray, "n layers 2"]
    start: Int[np.ndarray, "n"]
    saved: float


def make_tree(
    model: QuantizedModel, params: Params, bits: Float[np.ndarray, "n layers 2"], batches: Batches, prepare: Prepare
) -> Tree:
    """The tree of some allocations, for batches of this shape."""
    example = jax.eval_shape(prepare, jax.ShapeDtypeStruct(batches.inputs[0].shape, batches.inputs[0].dtype))
    graph = model.graph(params, example)
    units = {use.name: (row, unit) for row, unit in enumerate(model.units) for use in unit.uses}
    parts = []
    for segment in segments(graph, params):
        layers = tuple(name for name in segment.layers if name in units)
        owners = tuple(units[name][1].layer.name for name in layers)
        parts.append(Part(segment, layers, owners, tuple(units[name][0] for name in layers)))
    keys = np.concatenate([bits[:, part.rows].reshape(len(bits), -1) for part in parts], axis=1)
    order = np.lexsort(keys.T[::-1])
    ordered = bits[order]
    changed = [np.any(ordered[1:, part.rows] != ordered[:-1, part.rows], axis=(1, 2)) for part in parts]
    # An allocation that occurs twice differs nowhere: only the last part is run again, for its outputs.
    differs = np.stack([*changed[:-1], np.ones(len(bits) - 1, bool)], axis=1)
    start = np.concatenate([[0], np.argmax(differs, axis=1)])
    macs = {layer.name: layer.macs for layer in graph.layers}
    work = np.array([sum(macs.get(name, 0) for name in part.segment.layers) for part in parts], np.float64)
    before = np.concatenate([[0.0], np.cumsum(work)])[start]
    return Tree(tuple(parts), order, ordered, start, float(before.sum() / max(work.sum() * len(bits), 1.0)))


def evaluate_prefixes(
    tree: Tree,
    model: QuantizedModel,
    params: Params,
    table: Prequantized,
    batches: Batches,
    task: Task,
    prepare: Prepare,
    on_done: Callable[[int], None] | None = None,
) -> Scores:
    """``evaluate`` of the tree's allocations, in their original order; every common prefix is run once per batch.

    In memory at a time: the value at the end of every part, for one batch.
    """
    count, head, first = len(tree.order), _head(task), _prepared(prepare)
    shared, programs = [_shared(part, params, table) for part in tree.parts], dict[int, Any]()
    rows: list[list[np.ndarray]] = []
    told = 0
    for done, (inputs, targets) in enumerate(zip(batches.inputs, batches.targets)):
        values, results = [first(inputs)], list[tuple[Array, Array]]()
        for member, start in enumerate(tree.start):
            del values[start + 1 :]
            for i in range(start, len(tree.parts)):
                part = tree.parts[i]
                arguments = (*shared[i], values[-1], tree.bits[member][list(part.rows)])
                if i not in programs:
                    programs[i] = _program(model, part, Shapes(arguments))
                values.append(programs[i](*arguments))
            results.append(head(values[-1], targets))
            wait(results)
            now = (done * count + member + 1) // len(batches.targets)
            if on_done is not None and now > told:
                on_done(told := now)
        rows.append([np.stack([np.asarray(result[i]) for result in results]) for i in (0, 1)])
    back = np.argsort(tree.order)
    return Scores(*(np.concatenate([row[i] for row in rows], axis=1)[back, : batches.examples] for i in (0, 1)))


def _shared(part: Part, params: Params, table: Prequantized) -> tuple[Any, ...]:
    """What all allocations share of a part, by position and not by name, so that blocks alike are one program."""
    qparams = [table.menu.qparams[name] for name in part.owners]
    kernels = [table.kernels.get(name) for name in part.owners]
    return part.segment.parameters(params), table.menu.widths, table.widths, qparams, kernels


@functools.lru_cache(maxsize=256)
def _program(model: QuantizedModel, part: Part, shapes: Shapes) -> Callable[..., Any]:
    def step(
        parameters: list[Any], menu_widths: Array, widths: Array, qparams: Any, kernels: Any, value: Any, bits: Array
    ) -> Any:
        states = {}
        for i, name in enumerate(part.layers):
            states[name] = {"qparams": select_layer(menu_widths, qparams[i], bits[i]), "bits": bits[i]}
            if kernels[i] is not None:
                states[name]["kernel"] = kernels[i][nearest(widths, bits[i, 0])]
        return part.segment.run_on(model.handler, parameters, value, states)[0]

    return compiled(step, shapes.tree)


@functools.lru_cache(maxsize=64)
def _prepared(prepare: Prepare) -> Callable[[Array], Any]:
    return jax.jit(prepare)


@functools.lru_cache(maxsize=64)
def _head(task: Task) -> Callable[[Any, Array], tuple[Array, Array]]:
    return jax.jit(lambda outputs, targets: (task.loss(outputs, targets), task.score(outputs, targets)))
