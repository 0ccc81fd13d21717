"""From a table of sensitivities to the allocation problem, and from allocations back to bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from qresearch.allocation.problem import Measure, Problem
from qresearch.cost import COSTS
from qresearch.qmodel import QuantizedModel
from qresearch.sensitivities.subject import Sensitivity


def make_problem(
    model: QuantizedModel, table: Sensitivity, costs: Sequence[str] = ("average_bits",), measure: Measure | None = None
) -> Problem:
    """The allocation problem of a sensitivity table under the named costs (see ``qresearch.cost.COSTS``).

    measure: of allocations int[n, layer], for allocators that want the loss of all layers together.
    """
    elements, macs = [layer.size for layer in model.layers], [layer.macs for layer in model.layers]
    return Problem(
        loss=table.loss,
        costs=np.stack([COSTS[name].table(elements, macs, table.options) for name in costs]),
        layer_names=tuple(layer.name for layer in model.layers),
        option_names=tuple(f"W{weight}A{input}" for weight, input in table.options),
        constraint_names=tuple(costs),
        measure=measure,
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
