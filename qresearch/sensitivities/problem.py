"""From a table of sensitivities to the allocation problem, and from allocations back to bits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num

from qresearch.allocation.problem import Measure, Problem
from qresearch.cost import Cost, LayerCounts, cost_named
from qresearch.errors import ConfigError, did_you_mean
from qresearch.qmodel import QuantizedModel
from qresearch.sensitivities.subject import Sensitivity


def make_problem(
    model: QuantizedModel,
    table: Sensitivity,
    costs: Sequence[str] | Mapping[str, Cost] = ("average_bits",),
    measure: Measure | None = None,
    groups: Sequence[Sequence[int]] = (),
) -> Problem:
    """The allocation problem of a sensitivity table under these costs: keys of ``COSTS``, or costs by name.

    measure: of allocations int[n, layer], for allocators that want the loss of all layers together. groups: layers, by
    index, that must take the same option (see ``tied_layers``).
    """
    chosen = costs if isinstance(costs, Mapping) else {name: cost_named(name) for name in costs}
    return Problem(
        loss=table.loss,
        costs=np.stack([_allowed_costs(model, table, cost) for cost in chosen.values()]),
        groups=tuple(tuple(group) for group in groups),
        layer_names=tuple(layer.name for layer in model.layers),
        option_names=tuple(f"W{weight}A{input}" for weight, input in table.options),
        constraint_names=tuple(chosen),
        measure=measure,
        float_loss=table.float_loss,
    )


def _allowed_costs(model: QuantizedModel, table: Sensitivity, cost: Cost) -> Num[np.ndarray, "layer option"]:
    """The costs of the options that each layer may take, 0 elsewhere: a measured table need not price the others."""
    rows = []
    for row, losses in enumerate(table.loss):
        allowed = np.flatnonzero(np.isfinite(losses))
        own = LayerCounts(*(field[row : row + 1] for field in model.counts))
        prices = cost.table(own, [table.options[option] for option in allowed])[0]
        rows.append(np.zeros(len(losses), prices.dtype))
        rows[-1][allowed] = prices
    return np.stack(rows)


def budget_of(model: QuantizedModel, cost: str | Cost, value: float) -> float:
    """A budget given in the unit users read (average bits, kB, Mbops), as the integer cost that allocators work
    with.
    """
    chosen = cost_named(cost) if isinstance(cost, str) else cost
    # The tiny addition lets 4.0 average bits admit the uniform 4-bit allocation whatever the rounding of the product.
    return float(np.floor(value * chosen.total(model.counts) * (1 + 1e-12)))


def tied_layers(names: Sequence[str], patterns: Sequence[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """Groups of layers, by index, that are to take the same option: those that one entry's patterns match.

    In a pattern ``*`` stands for any text, and ``{}`` for a part of a name: layers of one entry for which it stands for
    different parts are groups of their own, so that ``block{}/attention/*`` ties the projections of each block.
    ConfigError for a pattern that matches no layer, and for an entry that ties nothing.
    """
    groups: list[tuple[int, ...]] = []
    for entry in patterns:
        found: dict[tuple[str, ...], set[int]] = {}
        for pattern in entry:
            parts = re.split(r"(\*|\{\})", pattern)
            expression = re.compile("".join({"*": ".*", "{}": "([^/]*)"}.get(part, re.escape(part)) for part in parts))
            matches = {row: expression.fullmatch(name) for row, name in enumerate(names)}
            if not any(matches.values()):
                raise ConfigError(
                    f"tied layers: '{pattern}' matches no layer{did_you_mean(pattern.strip('*/'), names)}"
                )
            for row, match in matches.items():
                if match is not None:
                    found.setdefault(match.groups(), set()).add(row)
        if all(len(rows) == 1 for rows in found.values()):
            raise ConfigError(f"tied layers: {', '.join(entry)} ties nothing; each of its groups is a single layer")
        groups += [tuple(sorted(rows)) for rows in found.values() if len(rows) > 1]
    return tuple(groups)


def allocation_bits(table: Sensitivity, allocation: Sequence[int] | np.ndarray) -> Float[np.ndarray, "layers 2"]:
    """The (weight_bits, input_bits) of every layer, from the option index of every layer."""
    return np.asarray([table.options[int(option)] for option in allocation], np.float32)
