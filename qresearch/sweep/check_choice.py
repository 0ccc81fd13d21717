"""What is refused before a search starts: methods and options that are not there, and budgets that cannot be met."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from qresearch.allocation import ALLOCATORS, Problem, merge_groups
from qresearch.config import RunConfig
from qresearch.data.dataset import with_first
from qresearch.errors import BudgetError, ConfigError, GraphError
from qresearch.options import check_options
from qresearch.search import SEARCHES
from qresearch.sensitivities import SENSITIVITIES, Sensitivity
from qresearch.sweep.assemble import costs_of, recipe_of
from qresearch.training import check_recipe

if TYPE_CHECKING:
    from qresearch.sweep.bench import Bench


def check_choice(bench: Bench, config: RunConfig) -> None:
    """Refuses methods and options that are not there, and budgets that no allocation meets."""
    _check_options(config)
    if config.allocation.allocator in SEARCHES and config.flow != "float":
        data = with_first(bench.setup.data, config.search.examples)
        check_recipe(recipe_of(config.search), data, "search")
        _check_pruning(bench, config)
    if config.flow != "float":
        _check_budgets(bench, config)


def _check_pruning(bench: Bench, config: RunConfig) -> None:
    """ConfigError where channels would have gates that rounding the float model ignores."""
    weights = [rule.weight for rule in bench.rules if rule.weight is not None]
    if config.flow == "ptq" and any("prune_axis" in dict(weight.options) for weight in weights):
        raise ConfigError("prune_axis: only QAT goes on from a search that prunes channels; set 'flow: qat'")


def _check_budgets(bench: Bench, config: RunConfig) -> None:
    """BudgetError for a budget that not even the cheapest options meet, in the unit that the user gave it in."""
    model, allocation = bench.sketch, config.allocation
    if not model.layers:
        raise GraphError(f"flow {config.flow}: the rules leave every layer in float; use flow float")
    if allocation.budget is None:
        return
    options = tuple(sorted({option for menu in model.menus for option in menu}))
    allowed = np.asarray([[0.0 if option in menu else np.inf for option in options] for menu in model.menus])
    problem, limits = bench.chooser.problem(config, Sensitivity(allowed, allowed, options, 0.0))
    merged, _ = merge_groups(problem)
    given = {"allocation.budget": (allocation.cost, allocation.budget)}
    given |= {f"allocation.limits.{name}": (name, value) for name, value in allocation.limits}
    for (key, (name, value)), costs, limit in zip(given.items(), merged.costs, limits[0]):
        cheapest, cost = np.where(merged.allowed, costs, np.inf).min(axis=1).sum(), costs_of(config)[name]
        if limit < cheapest:
            least = _rounded_up(float(cheapest / cost.total(model.counts)))
            raise BudgetError(
                f"{key}: {value:g} {cost.unit} ({name}) is below the cheapest allocation of the menus; give at"
                f" least {least:g}"
            )


_SMALLEST = Problem(np.ones((1, 1)), np.ones((1, 1, 1), int))  # one layer, one option: any allocator has an answer


def _check_options(config: RunConfig) -> None:
    allocation, measured = config.allocation, config.sensitivity
    choosers: dict[str, Callable[..., Any]] = {**ALLOCATORS, **SEARCHES}
    allocator = choosers[allocation.allocator]
    for key, given in (("limits", allocation.limits), ("refine", allocation.refine)):
        if allocation.allocator in SEARCHES and given:
            what = f"search '{allocation.allocator}' trains for one budget, and nothing refines it"
            raise ConfigError(f"allocation.{key}: {what}; leave it out")
    check_options("allocation", f"allocator '{allocation.allocator}'", allocator, dict(allocation.options))
    if allocation.allocator in ALLOCATORS:  # values that it would refuse only after the table was measured
        with contextlib.suppress(BudgetError):  # which is about a problem, and this is not the trial's
            ALLOCATORS[allocation.allocator](0, _SMALLEST, [1], **dict(allocation.options))
    method = SENSITIVITIES[measured.method]
    check_options("sensitivity", f"method '{measured.method}'", method, dict(measured.options))


def _rounded_up(value: float) -> float:
    """The next number of four digits: one that a user can type, and that is enough."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3) if value > 0 else 1.0
    return math.ceil(value / unit - 1e-9) * unit
