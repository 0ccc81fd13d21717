"""The bench of a group of trials: one quantized model, calibrated and measured once per float model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qresearch.allocation import ALLOCATORS, check_budgets
from qresearch.calibration import MenuQParams, calibrate, menu_widths
from qresearch.config import AllocationConfig, RunConfig
from qresearch.evaluation import Batches, make_batches
from qresearch.models import Variables
from qresearch.qmodel import QuantizedModel, quantize_model, sketch_model
from qresearch.results.atomic import write_json
from qresearch.sensitivities import Sensitivity, allocation_bits, budget_of, make_problem, sensitivity
from qresearch.sweep.assemble import Setup, recipe_of, rules_of, setup_of, shapes_of
from qresearch.sweep.progress import Reporter
from qresearch.training import Program, Trainer, make_trainer


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
        return sketch_model(self.setup.model.apply, *shapes_of(self.setup), rules_of(self.config.quantize))

    def model(self, variables: Variables) -> QuantizedModel:
        """The quantized model. The first float model's inputs decide which are signed, and with that the programs."""
        if not hasattr(self, "_model"):
            rules = rules_of(self.config.quantize)
            self._model = quantize_model(self.setup.model.apply, variables, self.calibration_inputs, rules)
        return self._model

    def calibrated(self, key: str, variables: Variables, widths: Sequence[int]) -> MenuQParams:
        """The qparams of the float model ``key`` at all widths of the menus and these."""
        model = self.model(variables)
        wanted = tuple(sorted({*widths, *menu_widths(model)}))
        if key not in self._tables:
            self._tables[key] = calibrate(model, variables, self.calibration_inputs, wanted)
        return self._tables[key]

    @functools.cached_property
    def _tables(self) -> dict[str, MenuQParams]:
        return {}

    def sensitivity(self, key: str, variables: Variables, qparams: MenuQParams) -> Sensitivity:
        """The sensitivity table of the float model ``key`` on validation examples; stored as
        ``sensitivity/<key>.json``.
        """
        model, size = self.model(variables), self.config.evaluate.batch_size
        batches = make_batches(self.setup.data.validation, size, self.config.sensitivity.examples)
        evaluations = sum(len(menu) for menu in model.menus) + 1
        with self.reporter.phase("sensitivity (layer, option)", evaluations) as advance:
            task, prepare = self.setup.task, self.setup.data.prepare
            table = sensitivity(model, variables, qparams, batches, task, prepare, on_done=advance)
        path = self.folder / "sensitivity" / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _as_json(table, [layer.name for layer in model.layers]))
        return table

    def allocate(self, key: int, table: Sensitivity, allocator: str, cost: str, budgets: Sequence[float]) -> np.ndarray:
        """Bits [budget, layer, 2] that the allocator chooses within each budget, given in the cost's unit."""
        problem = make_problem(self._model, table, (cost,))
        limits = np.asarray([budget_of(self._model, cost, budget) for budget in budgets])
        allocations, _ = ALLOCATORS[allocator](jax.random.key(key), problem, limits)
        return np.stack([allocation_bits(table, allocation) for allocation in allocations])

    def check_budgets(self, allocations: Sequence[AllocationConfig]) -> None:
        """BudgetError for a budget that not even the cheapest options meet, before anything is trained."""
        model = self.sketch
        options = tuple(sorted({option for menu in model.menus for option in menu}))
        allowed = np.asarray([[0.0 if option in menu else np.inf for option in options] for menu in model.menus])
        table = Sensitivity(allowed, allowed, options, 0.0)
        for allocation in allocations:
            if allocation.budget is not None:
                problem = make_problem(model, table, (allocation.cost,))
                limit = budget_of(model, allocation.cost, allocation.budget)
                check_budgets(problem, np.asarray([limit]))

    def trainer(self, variables: Variables, config: RunConfig) -> Trainer:
        """The QAT trainer for a recipe; the same one for equal recipes, so that its step compiles once."""
        recipe = recipe_of(config.qat)
        if recipe not in self._trainers:
            model, data = self.model(variables), self.setup.data
            x = (self.calibration_inputs[: recipe.batch_size], jax.random.key(0))
            twin = model.twin(self.setup.model.apply_train, variables, x)
            program = qat_program(model, twin)
            self._trainers[recipe] = make_trainer(program, self.setup.task, recipe, data, self.validation)
        return self._trainers[recipe]

    @functools.cached_property
    def _trainers(self) -> dict[Any, Trainer]:
        return {}


def qat_program(model: QuantizedModel, twin: QuantizedModel) -> Program:
    """Quantization-aware training of ``model``, whose training mode is ``twin``."""

    def train(variables: Any, qparams: Any, bits: Any, x: Any, key: Any) -> Any:
        dropout, stochastic = jax.random.split(key)
        return twin.apply(variables, qparams, (x, dropout), bits, stochastic)

    def forward(shared: Any, own: Any, x: Any) -> Any:
        return model.apply(own[0], own[1], x, own[2])

    return Program(train, forward, model.learnable)


def _as_json(table: Sensitivity, layers: list[str]) -> dict[str, Any]:
    def finite(array: np.ndarray) -> list[list[float | None]]:
        return [[float(value) if np.isfinite(value) else None for value in row] for row in array]

    return {
        "layers": layers,
        "options": [list(option) for option in table.options],
        "loss": finite(table.loss),
        "standard_error": finite(table.standard_error),
        "float_loss": table.float_loss,
    }
