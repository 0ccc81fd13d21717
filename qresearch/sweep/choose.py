"""How a trial with a budget gets its bits: what is measured for it, the problem it is, and who solves it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from qresearch.allocation import ALLOCATORS, Measure, Problem, check_budgets, merge_groups, refine
from qresearch.calibration import MenuQParams
from qresearch.config import RunConfig, SensitivityConfig
from qresearch.data.dataset import with_first
from qresearch.errors import BudgetError, ConfigError, GraphError
from qresearch.evaluation import Batches, make_batches
from qresearch.models import Variables
from qresearch.options import check_options
from qresearch.population import evaluate_population
from qresearch.prequantized import prequantize
from qresearch.qmodel import QParams
from qresearch.results.atomic import write_json
from qresearch.search import SEARCHES, SearchSubject
from qresearch.sensitivities import (
    SENSITIVITIES,
    Sensitivity,
    Subject,
    additivity,
    allocation_bits,
    budget_of,
    make_problem,
    tied_layers,
)
from qresearch.sweep.assemble import costs_of, recipe_of
from qresearch.sweep.sensitivity_json import joint_json, table_json
from qresearch.training import Trainer, check_recipe

if TYPE_CHECKING:
    from qresearch.sweep.bench import Bench


class Start(NamedTuple):
    """What a search trained, for QAT to go on from. kept: [layer], the share of output channels that are not pruned."""

    variables: Variables
    qparams: QParams
    kept: np.ndarray


@dataclass(eq=False)
class Chooser:
    """Chooses bits on a bench. Sensitivity tables are measured once per float model and kept."""

    bench: Bench

    def sensitivity(
        self, key: str, variables: Variables, qparams: MenuQParams, chosen: SensitivityConfig
    ) -> Sensitivity:
        """The sensitivity table of the float model ``key`` on validation examples; stored as
        ``sensitivity/<key>-<method>.json``.
        """
        if (key, chosen) not in self._sensitivities:
            started, model = time.monotonic(), self.bench.model(key, variables)
            name = "-".join([key, chosen.method, *(f"{option}={value}" for option, value in chosen.options)])
            evaluations = sum(len(menu) for menu in model.menus) + 1
            with self.bench.reporter.phase(f"sensitivity ({chosen.method})", evaluations) as advance:
                batches, task, prepare = self._measured_on(chosen), self.bench.setup.task, self.bench.setup.data.prepare
                subject = Subject(model, variables, qparams, batches, task, prepare, on_done=advance)
                table = SENSITIVITIES[chosen.method](subject, **dict(chosen.options))
            self._seconds[key, chosen] = time.monotonic() - started
            content = table_json(table, [layer.name for layer in model.layers])
            if chosen.joint:
                found = additivity(table, self.measure(key, variables, qparams, table, chosen), chosen.joint)
                content["joint"] = joint_json(found)
            path = self.bench.folder / "sensitivity" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
            self._sensitivities[key, chosen] = table
        return self._sensitivities[key, chosen]

    @functools.cached_property
    def _sensitivities(self) -> dict[Any, Sensitivity]:
        return {}

    @functools.cached_property
    def _seconds(self) -> dict[Any, float]:
        """What each table took."""
        return {}

    def _measured_on(self, chosen: SensitivityConfig) -> Batches:
        return make_batches(self.bench.setup.data.validation, self.bench.config.evaluate.batch_size, chosen.examples)

    def measure(
        self, key: str, variables: Variables, qparams: MenuQParams, table: Sensitivity, chosen: SensitivityConfig
    ) -> Measure:
        """The loss of whole allocations of a table's options, on the examples that the table was measured on."""
        model = self.bench.model(key, variables)
        ready = prequantize(model, variables, qparams)

        def measured(allocations: np.ndarray) -> np.ndarray:
            bits = np.stack([allocation_bits(table, row) for row in allocations])
            args = (self._measured_on(chosen), self.bench.setup.task, self.bench.setup.data.prepare)
            found = evaluate_population(model, variables, ready, bits, *args, share_prefixes=True)
            return found.loss.mean(axis=1, dtype=np.float64)

        return measured

    def search(self, config: RunConfig, key: str, variables: Variables, qparams: MenuQParams) -> np.ndarray:
        """Bits [layer, 2] within the trial's budgets, by its allocator or its search that trains.

        ``searches`` keeps what it took: seconds, how many allocations it measured, epochs that it trained, and the
        seconds of the sensitivity table, which other trials may share.
        """
        if config.allocation.allocator in SEARCHES:
            return self._train(config, key, variables)
        table = self.sensitivity(key, variables, qparams, config.sensitivity)
        measure = self.measure(key, variables, qparams, table, config.sensitivity)
        measured, started = [0], time.monotonic()

        def counted(allocations: np.ndarray) -> np.ndarray:
            measured[0] += len(allocations)
            return measure(allocations)

        bits = self.allocate(config, table, counted)
        taken = {"seconds": time.monotonic() - started, "measured": measured[0], "epochs": 0}
        self.searches[config] = taken | {"table_seconds": self._seconds[key, config.sensitivity]}
        return bits

    def _train(self, config: RunConfig, key: str, variables: Variables) -> np.ndarray:
        """The bits that a differentiable search finds; QAT goes on from what it trained where it hands that over."""
        setup, chosen, started = self.bench.setup, config.allocation, time.monotonic()
        subject = SearchSubject(
            self.bench.model(key, variables),
            setup.model.apply_train,
            variables,
            self.bench.calibration_inputs,
            with_first(setup.data, config.search.examples),
            self.bench.validation,
            setup.task,
            recipe_of(config.search),
            config.search.learning_rate,
            self._trainers,
            self._groups(config),
        )
        cost = costs_of(config)[chosen.cost]
        budget = budget_of(self.bench.sketch, cost, chosen.budget or 0.0)
        with self.bench.reporter.phase(f"search ({chosen.allocator}, {chosen.budget:g} {cost.unit})", 1) as advance:
            search = SEARCHES[chosen.allocator]
            bits, info = search(jax.random.key(config.seed), subject, cost, [budget], **dict(chosen.options))
            advance(1)
        taken = {"seconds": time.monotonic() - started, "measured": 0, "epochs": info["epochs"], "table_seconds": 0.0}
        names = [layer.name for layer in subject.model.layers]
        shares = {name: dict(zip(("weight", "input"), both)) for name, both in zip(names, info["shares"][0])}
        self.searches[config] = taken | {"shares": shares}
        start = info.get("starts", [None])[0]
        if start is not None:
            kept = np.asarray(info.get("kept", [[1.0] * len(bits[0])])[0])
            self.starts[config] = Start(start[0], start[1], kept)
        return bits[0]

    @functools.cached_property
    def _trainers(self) -> dict[Any, Trainer]:
        return {}

    @functools.cached_property
    def starts(self) -> dict[RunConfig, Start]:
        """Where the QAT of a trial begins, if its search hands over what it trained."""
        return {}

    @functools.cached_property
    def searches(self) -> dict[RunConfig, dict[str, Any]]:
        """What the search of each trial took, and how sure of its widths it was, if it learned any."""
        return {}

    def allocate(self, config: RunConfig, table: Sensitivity, measure: Measure | None = None) -> np.ndarray:
        """Bits [layer, 2] that the trial's allocator chooses within its budget, refined where the config asks for it.

        One budget a call: an allocator may let budgets share what it finds, and a trial's result must not depend on
        which others are still to be run.
        """
        chosen = config.allocation
        problem, limit = self.problem(config, table, measure)
        seed, options = jax.random.key(config.seed), dict(chosen.options)
        allocation = ALLOCATORS[chosen.allocator](seed, problem, limit, **options)[0][0]
        if chosen.refine:
            allocation, _ = refine(problem, allocation, check_budgets(problem, limit)[0], rounds=chosen.refine)
        return allocation_bits(table, allocation)

    def problem(
        self, config: RunConfig, table: Sensitivity, measure: Measure | None = None
    ) -> tuple[Problem, Float[np.ndarray, "1 constraint"]]:
        """The allocation problem of a trial, and its budgets: that of its cost and its further limits."""
        chosen, known = config.allocation, costs_of(config)
        budgets = {chosen.cost: chosen.budget or 0.0, **dict(chosen.limits)}
        costs = {name: known[name] for name in budgets}
        problem = make_problem(self.bench.sketch, table, costs, measure, self._groups(config))
        limits = [budget_of(self.bench.sketch, known[name], value) for name, value in budgets.items()]
        return problem, np.asarray([limits])

    def _groups(self, config: RunConfig) -> tuple[tuple[int, ...], ...]:
        return tied_layers([layer.name for layer in self.bench.sketch.layers], config.quantize.tied)

    def check(self, config: RunConfig) -> None:
        """Refuses methods and options that are not there, and budgets that no allocation meets."""
        _check_options(config)
        if config.allocation.allocator in SEARCHES and config.flow != "float":
            data = with_first(self.bench.setup.data, config.search.examples)
            check_recipe(recipe_of(config.search), data, "search")
            self._check_pruning(config)
        if config.flow != "float":
            self._check_budgets(config)

    def _check_pruning(self, config: RunConfig) -> None:
        """ConfigError where channels would have gates that rounding the float model ignores."""
        weights = [rule.weight for rule in self.bench.rules if rule.weight is not None]
        if config.flow == "ptq" and any("prune_axis" in dict(weight.options) for weight in weights):
            raise ConfigError("prune_axis: only QAT goes on from a search that prunes channels; set 'flow: qat'")

    def _check_budgets(self, config: RunConfig) -> None:
        """BudgetError for a budget that not even the cheapest options meet, in the unit that the user gave it in."""
        model, allocation = self.bench.sketch, config.allocation
        if not model.layers:
            raise GraphError(f"flow {config.flow}: the rules leave every layer in float; use flow float")
        if allocation.budget is None:
            return
        options = tuple(sorted({option for menu in model.menus for option in menu}))
        allowed = np.asarray([[0.0 if option in menu else np.inf for option in options] for menu in model.menus])
        problem, limits = self.problem(config, Sensitivity(allowed, allowed, options, 0.0))
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


def _check_options(config: RunConfig) -> None:
    allocation, measured = config.allocation, config.sensitivity
    choosers: dict[str, Callable[..., Any]] = {**ALLOCATORS, **SEARCHES}
    allocator = choosers[allocation.allocator]
    for key, given in (("limits", allocation.limits), ("refine", allocation.refine)):
        if allocation.allocator in SEARCHES and given:
            what = f"search '{allocation.allocator}' trains for one budget, and nothing refines it"
            raise ConfigError(f"allocation.{key}: {what}; leave it out")
    check_options("allocation", f"allocator '{allocation.allocator}'", allocator, dict(allocation.options))
    method = SENSITIVITIES[measured.method]
    check_options("sensitivity", f"method '{measured.method}'", method, dict(measured.options))


def _rounded_up(value: float) -> float:
    """The next number of four digits: one that a user can type, and that is enough."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3) if value > 0 else 1.0
    return math.ceil(value / unit - 1e-9) * unit
