"""Sensitivity: how much the loss grows when one layer alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qresearch.allocation.problem import Problem
from qresearch.calibration import MenuQParams
from qresearch.cost import COSTS
from qresearch.data.dataset import Prepare
from qresearch.errors import DataError
from qresearch.evaluation import Batches
from qresearch.population import evaluate_population, unchanged
from qresearch.qmodel import Params, QParams, QuantizedModel
from qresearch.rules import Option
from qresearch.tasks import Task

FLOAT = 32.0


class Sensitivity(NamedTuple):
    """loss [layer, option]: increase of the mean loss over the float model, +inf where the layer may not take the
    option.

    standard_error: of that increase over the examples (NaN for a single one). options: the union of all menus.
    float_loss: the float model's.
    """

    loss: Float[np.ndarray, "layer option"]
    standard_error: Float[np.ndarray, "layer option"]
    options: tuple[Option, ...]
    float_loss: float


def sensitivity(
    model: QuantizedModel,
    params: Params,
    qparams: QParams | MenuQParams,
    batches: Batches,
    task: Task,
    prepare: Prepare = unchanged,
    chunk: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Sensitivity:
    """The true increase of the loss for every layer and every option of its menu, all other layers in float.

    One compilation (the one that ``evaluate_population`` uses anyway) and one pass over the batches per pair. The sum
    over layers predicts the loss of an allocation as far as the layers do not interact.
    """
    options = tuple(sorted({option for menu in model.menus for option in menu}))
    pairs = [(i, o) for i, menu in enumerate(model.menus) for o, option in enumerate(options) if option in menu]
    allocations = np.full((len(pairs) + 1, len(model.layers), 2), FLOAT, np.float32)
    for row, (layer, option) in enumerate(pairs):
        allocations[row, layer] = options[option]
    losses = evaluate_population(model, params, qparams, allocations, batches, task, prepare, chunk, on_done).loss
    if not np.isfinite(losses[-1]).all():
        raise DataError("the float model's loss is not finite on these examples, so nothing can be compared with it")
    increase = losses[:-1].astype(np.float64) - losses[-1]
    loss = np.full((len(model.layers), len(options)), np.inf)
    error = np.full_like(loss, np.nan)
    for (layer, option), change in zip(pairs, increase):
        loss[layer, option] = change.mean()
        if len(change) > 1:
            error[layer, option] = change.std(ddof=1) / np.sqrt(len(change))
    return Sensitivity(loss, error, options, float(losses[-1].mean()))


def make_problem(model: QuantizedModel, table: Sensitivity, costs: Sequence[str] = ("average_bits",)) -> Problem:
    """The allocation problem of a sensitivity table under the named costs (see ``qresearch.cost.COSTS``)."""
    elements, macs = [layer.size for layer in model.layers], [layer.macs for layer in model.layers]
    return Problem(
        loss=table.loss,
        costs=np.stack([COSTS[name].table(elements, macs, table.options) for name in costs]),
        layer_names=tuple(layer.name for layer in model.layers),
        option_names=tuple(f"W{weight}A{input}" for weight, input in table.options),
    )


def budget_of(model: QuantizedModel, cost: str, value: float) -> float:
    """A budget given in the unit users read (average bits, kB, Mbops), as the integer cost that allocators work
    with.
    """
    elements, macs = [layer.size for layer in model.layers], [layer.macs for layer in model.layers]
    # The tiny addition lets 4.0 average bits admit the uniform 4-bit allocation whatever the rounding of the product.
    return float(np.floor(value * COSTS[cost].total(elements, macs) * (1 + 1e-12)))


def allocation_bits(table: Sensitivity, allocation: Sequence[int] | np.ndarray) -> Float[np.ndarray, "layers 2"]:
    """The (weight_bits, input_bits) of every layer, from the option index of every layer."""
    return np.asarray([table.options[int(option)] for option in allocation], np.float32)
