"""The bench of a group of trials: one quantized model, calibrated and measured once per float model."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.allocation import ALLOCATORS, Measure, check_budgets, refine
from qresearch.calibration import MenuQParams, calibrate, menu_widths
from qresearch.config import RunConfig, SensitivityConfig
from qresearch.cost import COSTS
from qresearch.errors import BudgetError, GraphError
from qresearch.evaluation import Batches, make_batches
from qresearch.models import Variables
from qresearch.options import check_options
from qresearch.population import evaluate_population
from qresearch.prequantized import prequantize
from qresearch.qmodel import QuantizedModel, quantize_model, sketch_model
from qresearch.results.atomic import write_json
from qresearch.rules import Rule
from qresearch.sensitivities import (
    SENSITIVITIES,
    Sensitivity,
    Subject,
    additivity,
    allocation_bits,
    budget_of,
    make_problem,
)
from qresearch.sweep.assemble import Setup, load_weights, methods_of, recipe_of, rules_of, setup_of, shapes_of
from qresearch.sweep.fit import check_fit
from qresearch.sweep.keep import pin_ends
from qresearch.sweep.progress import Reporter
from qresearch.sweep.sensitivity_json import joint_json, table_json
from qresearch.training import Program, Trainer, check_recipe, make_trainer


@dataclasses.dataclass(eq=False)
class Bench:
    """What trials of the same data, model and quantization share, whatever their flow, seed, bits or learning rate.

    Everything costly is made on first use and kept: the model (compiled programs hang on it), the qparams of all widths
    and the sensitivity table of each float model, the batches.
    """

    config: RunConfig
    folder: Path
    reporter: Reporter

    @functools.cached_property
    def setup(self) -> Setup:
        """The data set, model and task."""
        return setup_of(self.config)

    @functools.cached_property
    def test(self) -> Batches:
        """The test examples that scores are reported on."""
        return make_batches(self.setup.data.test, self.config.evaluate.batch_size, self.config.evaluate.examples)

    @functools.cached_property
    def validation(self) -> Batches:
        """The validation examples that choices are made on."""
        return make_batches(self.setup.data.validation, self.config.evaluate.batch_size, self.config.evaluate.examples)

    @functools.cached_property
    def calibration_inputs(self) -> jax.Array:
        """The first training examples, prepared for the model."""
        examples = self.setup.data.train.inputs[: self.config.calibration.examples]
        return jnp.asarray(self.setup.data.prepare(jnp.asarray(examples)))

    @functools.cached_property
    def sketch(self) -> QuantizedModel:
        """The layers and menus, found without weights or data: enough to check rules and budgets."""
        return sketch_model(self.setup.model.apply, *shapes_of(self.setup), self.rules)

    @functools.cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of the config, and those that keep the first and the last layer at more bits."""
        rules, keep = rules_of(self.config.quantize), self.config.quantize.keep
        if not (keep.first or keep.last):
            return rules
        return pin_ends(rules, sketch_model(self.setup.model.apply, *shapes_of(self.setup), rules), keep)

    def model(self, key: str, variables: Variables) -> QuantizedModel:
        """The quantized model of the float model ``key``, whose inputs decide which are signed.

        Where they agree on that, float models share one object, and with it the compiled programs.
        """
        if key not in self._models:
            fn, x = self.setup.model.apply, self.calibration_inputs
            self._models[key] = quantize_model(fn, variables, x, self.rules)
        return self._models[key]

    @functools.cached_property
    def _models(self) -> dict[str, QuantizedModel]:
        return {}

    def calibrated(self, key: str, variables: Variables, widths: Sequence[int]) -> MenuQParams:
        """The qparams of the float model ``key`` at all widths of the menus and these."""
        model = self.model(key, variables)
        wanted = tuple(sorted({*widths, *menu_widths(model)}))
        if key not in self._tables:
            self._tables[key] = calibrate(model, variables, self.calibration_inputs, wanted)
        return self._tables[key]

    @functools.cached_property
    def _tables(self) -> dict[str, MenuQParams]:
        return {}

    def sensitivity(
        self, key: str, variables: Variables, qparams: MenuQParams, chosen: SensitivityConfig
    ) -> Sensitivity:
        """The sensitivity table of the float model ``key`` on validation examples; stored as
        ``sensitivity/<key>-<method>.json``.
        """
        if (key, chosen) not in self._sensitivities:
            model, name = (
                self.model(key, variables),
                "-".join([key, chosen.method, *(f"{option}={value}" for option, value in chosen.options)]),
            )
            evaluations = sum(len(menu) for menu in model.menus) + 1
            with self.reporter.phase(f"sensitivity ({chosen.method})", evaluations) as advance:
                batches, task, prepare = self._measured_on(chosen), self.setup.task, self.setup.data.prepare
                subject = Subject(model, variables, qparams, batches, task, prepare, on_done=advance)
                table = SENSITIVITIES[chosen.method](subject, **dict(chosen.options))
            content = table_json(table, [layer.name for layer in model.layers])
            if chosen.joint:
                found = additivity(table, self.measure(key, variables, qparams, table, chosen), chosen.joint)
                content["joint"] = joint_json(found)
            path = self.folder / "sensitivity" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
            self._sensitivities[key, chosen] = table
        return self._sensitivities[key, chosen]

    @functools.cached_property
    def _sensitivities(self) -> dict[Any, Sensitivity]:
        return {}

    def _measured_on(self, chosen: SensitivityConfig) -> Batches:
        return make_batches(self.setup.data.validation, self.config.evaluate.batch_size, chosen.examples)

    def measure(
        self, key: str, variables: Variables, qparams: MenuQParams, table: Sensitivity, chosen: SensitivityConfig
    ) -> Measure:
        """The loss of whole allocations of a table's options, on the examples that the table was measured on."""
        model = self.model(key, variables)
        ready = prequantize(model, variables, qparams, self.calibration_inputs)

        def measured(allocations: np.ndarray) -> np.ndarray:
            bits = np.stack([allocation_bits(table, row) for row in allocations])
            args = (self._measured_on(chosen), self.setup.task, self.setup.data.prepare)
            found = evaluate_population(model, variables, ready, bits, *args, share_prefixes=True)
            return found.loss.mean(axis=1, dtype=np.float64)

        return measured

    def search(
        self, config: RunConfig, key: str, variables: Variables, qparams: MenuQParams, table: Sensitivity
    ) -> np.ndarray:
        """``allocate`` with measured losses; ``searches`` keeps its seconds and how many allocations it measured."""
        measure = self.measure(key, variables, qparams, table, config.sensitivity)
        measured, started = [0], time.monotonic()

        def counted(allocations: np.ndarray) -> np.ndarray:
            measured[0] += len(allocations)
            return measure(allocations)

        bits = self.allocate(config, table, counted)
        self.searches[config] = {"seconds": time.monotonic() - started, "measured": measured[0]}
        return bits

    @functools.cached_property
    def searches(self) -> dict[RunConfig, dict[str, float]]:
        """What the search of each trial took."""
        return {}

    def allocate(self, config: RunConfig, table: Sensitivity, measure: Measure | None = None) -> np.ndarray:
        """Bits [layer, 2] that the trial's allocator chooses within its budget, refined where the config asks for it.

        One budget a call: an allocator may let budgets share what it finds, and a trial's result must not depend on
        which others are still to be run.
        """
        chosen = config.allocation
        limit = np.asarray([budget_of(self.sketch, chosen.cost, chosen.budget or 0.0)])
        problem = make_problem(self.sketch, table, (chosen.cost,), measure)
        seed, options = jax.random.key(config.seed), dict(chosen.options)
        allocation = ALLOCATORS[chosen.allocator](seed, problem, limit, **options)[0][0]
        if chosen.refine:
            allocation, _ = refine(problem, allocation, check_budgets(problem, limit)[0], rounds=chosen.refine)
        return allocation_bits(table, allocation)

    def check(self, configs: Sequence[RunConfig]) -> None:
        """Refuses what these trials could not do, before anything is trained: files, recipes, rules and budgets."""
        check_fit(self.config, self.setup)
        if self.config.model.weights:
            load_weights(self.config, self.setup)
        else:
            check_recipe(recipe_of(self.config.float_training), self.setup.data, "float")
        if any(config.flow != "float" for config in configs) and self.sketch.layers:
            # Traced, not run: a group size that divides no layer is said before anything is trained.
            jax.eval_shape(self.sketch.init, *shapes_of(self.setup), jnp.full((len(self.sketch.layers), 2), 8.0))
        for config in configs:
            if config.flow == "qat":
                check_recipe(recipe_of(config.qat), self.setup.data, "qat")
            if config.flow != "float":
                self._check_allocation(config)
            _check_search(config)
            methods_of(config)

    def _check_allocation(self, config: RunConfig) -> None:
        """BudgetError for a budget that not even the cheapest options meet, in the unit that the user gave it in."""
        model, allocation = self.sketch, config.allocation
        if not model.layers:
            raise GraphError(f"flow {config.flow}: the rules leave every layer in float; use flow float")
        if allocation.budget is None:
            return
        options = tuple(sorted({option for menu in model.menus for option in menu}))
        allowed = np.asarray([[0.0 if option in menu else np.inf for option in options] for menu in model.menus])
        problem = make_problem(model, Sensitivity(allowed, allowed, options, 0.0), (allocation.cost,))
        cheapest = np.where(problem.allowed, problem.costs[0], np.inf).min(axis=1).sum()
        if budget_of(model, allocation.cost, allocation.budget) < cheapest:
            elements, macs = [layer.size for layer in model.layers], [layer.macs for layer in model.layers]
            cost = COSTS[allocation.cost]
            least = _rounded_up(float(cheapest / cost.total(elements, macs)))
            raise BudgetError(
                f"allocation.budget: {allocation.budget:g} {cost.unit} ({allocation.cost}) is below the cheapest"
                f" allocation of the menus; give at least {least:g}"
            )

    def trainer(self, key: str, variables: Variables, config: RunConfig) -> Trainer:
        """The QAT trainer for a recipe; the same one for equal recipes, so that its step compiles once."""
        recipe, model, data = recipe_of(config.qat), self.model(key, variables), self.setup.data
        if (recipe, model) not in self._trainers:
            x = (self.calibration_inputs[: recipe.batch_size], jax.random.key(0))
            twin = model.twin(self.setup.model.apply_train, variables, x)
            program = qat_program(model, twin)
            self._trainers[recipe, model] = make_trainer(program, self.setup.task, recipe, data, self.validation)
        return self._trainers[recipe, model]

    @functools.cached_property
    def _trainers(self) -> dict[Any, Trainer]:
        return {}


def _check_search(config: RunConfig) -> None:
    allocation, measured = config.allocation, config.sensitivity
    allocator = ALLOCATORS[allocation.allocator]
    check_options("allocation", f"allocator '{allocation.allocator}'", allocator, dict(allocation.options))
    method = SENSITIVITIES[measured.method]
    check_options("sensitivity", f"method '{measured.method}'", method, dict(measured.options))


def qat_program(model: QuantizedModel, twin: QuantizedModel) -> Program:
    """Quantization-aware training of ``model``, whose training mode is ``twin``."""

    def train(variables: Any, qparams: Any, bits: Any, x: Any, key: Any) -> Any:
        dropout, stochastic = jax.random.split(key)
        return twin.apply(variables, qparams, (x, dropout), bits, stochastic)

    def forward(shared: Any, own: Any, x: Any) -> Any:
        return model.apply(own[0], own[1], x, own[2])

    return Program(train, forward, model.learnable)


def _rounded_up(value: float) -> float:
    """The next number of four digits: one that a user can type, and that is enough."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3) if value > 0 else 1.0
    return math.ceil(value / unit - 1e-9) * unit
