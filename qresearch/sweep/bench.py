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

from qresearch.calibration import MenuQParams, calibrate, menu_widths
from qresearch.config import RunConfig
from qresearch.data.dataset import with_first
from qresearch.evaluation import Batches, make_batches
from qresearch.models import Variables
from qresearch.qmodel import QuantizedModel, quantize_model, sketch_model
from qresearch.rules import Rule
from qresearch.sweep.assemble import (
    Setup,
    load_weights,
    methods_of,
    recipe_of,
    rules_of,
    setup_of,
    shapes_of,
)
from qresearch.sweep.check_choice import check_choice
from qresearch.sweep.choose import Chooser
from qresearch.sweep.fit import check_fit
from qresearch.sweep.keep import pin_ends
from qresearch.sweep.progress import Reporter
from qresearch.training import Program, Trainer, check_recipe, make_trainer


@dataclasses.dataclass(eq=False)
class Bench:
    """What trials of the same data, model and quantization share, whatever their flow, seed, bits or learning rate.

    Everything costly is made on first use and kept: the model (compiled programs hang on it), the qparams of all widths
    and the sensitivity table of each float model, the batches. widths: of all trials that will ever come here.
    """

    config: RunConfig
    folder: Path
    reporter: Reporter
    widths: tuple[int, ...] = ()

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
        """The qparams of the float model ``key`` at all widths of the menus, those of the bench, and these."""
        model = self.model(key, variables)
        wanted = {*self.widths, *widths, *menu_widths(model)}
        table = self._tables.get(key)
        if table is None or not wanted <= set(np.asarray(table.widths).astype(int).tolist()):
            table = calibrate(model, variables, self.calibration_inputs, sorted(wanted))
            self._tables[key] = table
        return table

    @functools.cached_property
    def _tables(self) -> dict[str, MenuQParams]:
        return {}

    @functools.cached_property
    def finite(self) -> dict[tuple[str, str], bool]:
        """Whether the loss of the float model (key) is finite on a split, where somebody asked."""
        return {}

    @functools.cached_property
    def chooser(self) -> Chooser:
        """Chooses the bits of trials that have a budget."""
        return Chooser(self)

    def check(self, configs: Sequence[RunConfig]) -> None:
        """Refuses what these trials could not do, before anything is trained: files, recipes, rules and budgets."""
        check_fit(self.config, self.setup)
        if self.config.model.weights:
            load_weights(self.config, self.setup)
        else:
            data = with_first(self.setup.data, self.config.float_training.examples)
            check_recipe(recipe_of(self.config.float_training), data, "float")
        if any(config.flow != "float" for config in configs) and self.sketch.layers:
            # Traced, not run: a group size that divides no layer is said before anything is trained.
            jax.eval_shape(self.sketch.init, *shapes_of(self.setup), jnp.full((len(self.sketch.layers), 2), 8.0))
        for config in configs:
            if config.flow == "qat":
                check_recipe(recipe_of(config.qat), with_first(self.setup.data, config.qat.examples), "qat")
            if config.flow != "float":
                check_choice(self, config)
            methods_of(config)

    def trainer(self, key: str, variables: Variables, config: RunConfig) -> Trainer:
        """The QAT trainer for a recipe; the same one for equal recipes, so that its step compiles once."""
        data = with_first(self.setup.data, config.qat.examples)
        recipe, model = recipe_of(config.qat), self.model(key, variables)
        if (recipe, model, data) not in self._trainers:
            x = (self.calibration_inputs[: recipe.batch_size], jax.random.key(0))
            twin = model.twin(self.setup.model.apply_train, variables, x)
            program = qat_program(model, twin)
            self._trainers[recipe, model, data] = make_trainer(program, self.setup.task, recipe, data, self.validation)
        return self._trainers[recipe, model, data]

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
