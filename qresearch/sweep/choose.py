"""How a trial with a budget gets its bits: what is measured for it, the problem it is, and who solves it."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from qresearch.allocation import ALLOCATORS, Measure, Problem, check_budgets, refine
from qresearch.calibration import MenuQParams
from qresearch.config import RunConfig, SensitivityConfig, trial_label
from qresearch.data.dataset import with_first
from qresearch.devices import is_first
from qresearch.errors import DataError
from qresearch.evaluation import Batches, make_batches
from qresearch.models import Variables
from qresearch.population import evaluate_population
from qresearch.prequantized import prequantize
from qresearch.results.atomic import make_folder
from qresearch.results.record import content_hash
from qresearch.results.sealed import read_sealed, write_sealed
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
from qresearch.sweep.found import Found, Start, load_found, save_found
from qresearch.sweep.plan import group_key
from qresearch.sweep.sensitivity_json import joint_json, posterior_json, read_table, table_json
from qresearch.training import Trainer

if TYPE_CHECKING:
    from qresearch.sweep.bench import Bench


@dataclass(eq=False)
class Chooser:
    """Chooses bits on a bench. Sensitivity tables are measured once per float model and kept."""

    bench: Bench

    def sensitivity(
        self, key: str, variables: Variables, qparams: MenuQParams, chosen: SensitivityConfig
    ) -> Sensitivity:
        """The sensitivity table of the float model ``key`` on validation examples; stored in ``sensitivity``, where
        other workers, and the same command again, find it.
        """
        if (key, chosen) not in self._sensitivities and not self._load(key, variables, chosen):
            started, model = time.monotonic(), self.bench.model(key, variables)
            evaluations = sum(len(menu) for menu in model.menus) + 1
            with self.bench.reporter.phase(f"sensitivity ({chosen.method})", evaluations) as advance:
                batches, task, prepare = self._measured_on(chosen), self.bench.setup.task, self.bench.setup.data.prepare
                subject = Subject(model, variables, qparams, batches, task, prepare, on_done=advance)
                table = SENSITIVITIES[chosen.method](subject, **dict(chosen.options))
            self._seconds[key, chosen] = time.monotonic() - started
            content = table_json(table, [layer.name for layer in model.layers])
            content |= {"identity": self._identity(key, chosen), "seconds": self._seconds[key, chosen]}
            content["name"] = "-".join([key, chosen.method, *(f"{option}={value}" for option, value in chosen.options)])
            if chosen.joint:
                found = additivity(table, self.measure(key, variables, qparams, table, chosen), chosen.joint)
                content["joint"] = joint_json(found)
            path = self._table_path(key, chosen)
            if is_first():
                make_folder(path.parent)
                write_sealed(path, content)
            self._sensitivities[key, chosen] = table
        return self._sensitivities[key, chosen]

    def _load(self, key: str, variables: Variables, chosen: SensitivityConfig) -> bool:
        """Whether the table is stored. One that is damaged is measured again, and said so."""
        path, model = self._table_path(key, chosen), self.bench.model(key, variables)
        if not path.is_file():
            return False
        try:
            content = read_sealed(path)
            options = [tuple(option) for option in content["options"]]
            allowed = np.asarray([[option in menu for option in options] for menu in model.menus])
            table = read_table(content, allowed) if content["identity"] == self._identity(key, chosen) else None
        except DataError as error:
            self.bench.reporter.line(f"{error}; the sensitivities are measured again")
            return False
        if table is None:
            return False
        self._sensitivities[key, chosen], self._seconds[key, chosen] = table, content["seconds"]
        return True

    def _table_path(self, key: str, chosen: SensitivityConfig) -> Path:
        name = f"{key}-{chosen.method}-{content_hash(self._identity(key, chosen))[:8]}.json"
        return self.bench.folder / "sensitivity" / name

    def _identity(self, key: str, chosen: SensitivityConfig) -> dict[str, Any]:
        """What a table depends on, as plain values."""
        return {"float": key, "bench": group_key(self.bench.config), "measured": chosen.model_dump(mode="json")}

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

        ``found`` keeps what it took: seconds, how many allocations it measured, epochs that it trained, and the
        seconds of the sensitivity table, which other trials may share. It is stored in ``searches`` as soon as it is
        known, so that a run that is stopped before it has evaluated the bits does not search again.
        """
        folder, report = self.bench.folder / "searches", self.bench.reporter.line
        found = load_found(folder, config, self.bench.sketch, variables, self.bench.calibration_inputs, report)
        if found is None:
            trains = config.allocation.allocator in SEARCHES
            found = self._train(config, key, variables) if trains else self._solve(config, key, variables, qparams)
            save_found(folder, config, found)
        self.found[config] = found
        return found.bits

    def _solve(self, config: RunConfig, key: str, variables: Variables, qparams: MenuQParams) -> Found:
        """The bits that an allocator chooses, from a sensitivity table and, where it asks, from measured losses."""
        table = self.sensitivity(key, variables, qparams, config.sensitivity)
        measure = self.measure(key, variables, qparams, table, config.sensitivity)
        measured, started = [0], time.monotonic()

        def counted(allocations: np.ndarray) -> np.ndarray:
            measured[0] += len(allocations)
            return measure(allocations)

        bits, info = self._allocate(config, table, counted)
        taken = {"seconds": time.monotonic() - started, "measured": measured[0], "epochs": 0}
        taken["table_seconds"] = self._seconds[key, config.sensitivity]
        for remedy in info.get("remedies", ()):
            self.bench.reporter.line(f"warning: {trial_label(config)}: {remedy}")
        names = [layer.name for layer in self.bench.sketch.layers]
        return Found(bits, taken | posterior_json(info, names, table.options), draws=info.get("draws"))

    def _train(self, config: RunConfig, key: str, variables: Variables) -> Found:
        """The bits that a differentiable search finds; its trained weights are not used: the trial's flow decides."""
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
        start = info.get("starts", [None])[0]
        kept = np.asarray(info.get("kept", [[1.0] * len(names)])[0])
        return Found(bits[0], taken | {"shares": shares}, None if start is None else Start(start[0], start[1], kept))

    @functools.cached_property
    def _trainers(self) -> dict[Any, Trainer]:
        return {}

    @functools.cached_property
    def found(self) -> dict[RunConfig, Found]:
        """What the search of each trial found."""
        return {}

    def allocate(self, config: RunConfig, table: Sensitivity, measure: Measure | None = None) -> np.ndarray:
        """Bits [layer, 2] that the trial's allocator chooses within its budget, refined where the config asks for it.

        One budget a call: an allocator may let budgets share what it finds, and a trial's result must not depend on
        which others are still to be run.
        """
        return self._allocate(config, table, measure)[0]

    def _allocate(
        self, config: RunConfig, table: Sensitivity, measure: Measure | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The bits, and the allocator's ``info``."""
        chosen = config.allocation
        problem, limit = self.problem(config, table, measure)
        seed, options = jax.random.key(config.seed), dict(chosen.options)
        allocations, info = ALLOCATORS[chosen.allocator](seed, problem, limit, **options)
        if not chosen.refine:
            return allocation_bits(table, allocations[0]), info
        refined, _ = refine(problem, allocations[0], check_budgets(problem, limit)[0], rounds=chosen.refine)
        return allocation_bits(table, refined), info

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
