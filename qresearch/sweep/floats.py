"""The float models of a sweep: loaded, or trained once per seed as one population, and kept in the run's folder."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qresearch.checkpoint import load_checkpoint, save_checkpoint
from qresearch.config import RunConfig, resolved
from qresearch.data import Dataset
from qresearch.data.dataset import with_first
from qresearch.devices import agreed, is_first
from qresearch.errors import DataError
from qresearch.evaluation import make_batches
from qresearch.keeper import Keeper
from qresearch.models import Model, Variables
from qresearch.results.sealed import read_sealed, write_sealed
from qresearch.results.tables import float_identity
from qresearch.sweep.assemble import Setup, example_of, load_weights, recipe_of, setup_of, shapes_of
from qresearch.sweep.progress import Reporter, epochs_done
from qresearch.tasks import Task
from qresearch.training import Program, Recipe, Trained, Trainer, Trial, make_trainer


class FloatModel(NamedTuple):
    """Float variables, or why there are none. history: one row per epoch; best_epoch 0 where weights were loaded."""

    variables: Variables | None
    history: list[dict[str, float]]
    best_epoch: int
    failure: str | None = None


@functools.lru_cache(maxsize=20_000)
def float_key(config: RunConfig) -> str:
    """What identifies the float variables of a run: the data, the model, the recipe and the seed."""
    return float_identity(resolved(config))


def float_group(config: RunConfig) -> tuple[Any, ...]:
    """What is static of a float training: equal for runs whose float models are one population."""
    return config.task, config.data, config.model, recipe_of(config.float_training), config.evaluate.batch_size


def is_stored(config: RunConfig, folder: Path) -> bool:
    """Whether the float model of a run is in ``folder``, to all appearance: what is damaged is trained again later."""
    path = folder / float_key(config)
    return path.is_dir() and path.with_suffix(".json").is_file()


def load_float(config: RunConfig, folder: Path) -> Variables:
    """The float variables of a run, from its weight file or from ``folder``. DataError if they are not there whole."""
    setup = setup_of(config)
    if config.model.weights:
        return load_weights(config, setup)
    return load_checkpoint(folder / float_key(config), shapes_of(setup)[0])


def obtain_floats(configs: Iterable[RunConfig], folder: Path, reporter: Reporter) -> dict[str, FloatModel]:
    """The float models of these runs by ``float_key``: from files, from ``folder`` or by training, which stores
    them.
    """
    wanted = {float_key(config): config for config in configs}
    found = {key: _stored(config, folder / key, reporter) for key, config in wanted.items()}
    models = {key: model for key, model in found.items() if model is not None}
    agreed(len(models), f"numbers of float models in {folder}")
    groups: dict[tuple[Any, ...], dict[str, RunConfig]] = {}
    for key, config in wanted.items():
        if key not in models:
            groups.setdefault(float_group(config), {})[key] = config
    for group in groups.values():
        models |= _train(group, folder, reporter)
    return models


def _stored(config: RunConfig, path: Path, reporter: Reporter) -> FloatModel | None:
    if config.model.weights:
        return FloatModel(load_float(config, path.parent), [], 0)
    facts = path.with_suffix(".json")
    if not is_stored(config, path.parent):
        return None
    try:
        content = read_sealed(facts)
        history, best_epoch = list(content["history"]), int(content["best_epoch"])
        return FloatModel(load_float(config, path.parent), history, best_epoch)
    except (DataError, ValueError, KeyError, TypeError) as error:
        reporter.line(f"float model of seed {config.seed} is trained again: {error}")
        return None


def _train(group: Mapping[str, RunConfig], folder: Path, reporter: Reporter) -> dict[str, FloatModel]:
    """Trains the seeds (and learning rates) of one static group as a population."""
    config = next(iter(group.values()))
    setup, recipe = setup_of(config), recipe_of(config.float_training)
    data = with_first(setup.data, config.float_training.examples)
    trainer = float_trainer(setup.model, setup.task, recipe, data, config.evaluate.batch_size)
    trials = [_trial(setup, config) for config in group.values()]
    models = {}
    keepers = [keeper_of(config, folder.parent, key, reporter) for key, config in group.items()]
    with reporter.phase("float training (epochs)", len(trials) * recipe.epochs) as advance:
        outcomes = trainer.train(trials, on_epoch=epochs_done(advance, recipe.epochs), keepers=keepers)
        for key, keeper, outcome in zip(group, keepers, outcomes):
            models[key] = _keep(outcome, folder / key)
            if keeper is not None:
                keeper.remove()
    return models


def keeper_of(config: RunConfig, run: Path, key: str, reporter: Reporter, stops: bool = False) -> Keeper | None:
    """Where the training ``key`` of a run keeps its checkpoints, if the config asks for any, or it stops on its way."""
    every, keep = config.checkpoints.every, config.checkpoints.keep
    return None if every is None and not stops else Keeper(run / "training" / key, every, keep, reporter.line, stops)


def _keep(outcome: Trained, path: Path) -> FloatModel:
    if outcome.failure is not None:
        return FloatModel(None, outcome.history, 0, f"float training: {outcome.failure}")
    variables = outcome.best[0]
    save_checkpoint(path, variables)
    if is_first():
        write_sealed(path.with_suffix(".json"), {"history": outcome.history, "best_epoch": outcome.best_epoch})
    return FloatModel(variables, outcome.history, outcome.best_epoch)


def _trial(setup: Setup, config: RunConfig) -> Trial:
    x = example_of(setup.data)
    variables = setup.model.init(jax.random.key(config.seed), jnp.zeros(x.shape, x.dtype))
    return Trial(variables, {}, (), config.float_training.learning_rate, config.seed)


@functools.lru_cache(maxsize=8)
def float_trainer(model: Model, task: Task, recipe: Recipe, data: Dataset, batch_size: int) -> Trainer:
    """The trainer of a float model; the same one for the same arguments, so that its step compiles once."""

    def train(variables: Any, qparams: Any, bits: Any, x: Any, key: Any) -> Any:
        return model.apply_train(variables, (x, key))

    def forward(shared: Any, own: Any, x: Any) -> Any:
        return model.apply(own[0], x)

    program = Program(train, forward, lambda qparams: {})
    return make_trainer(program, task, recipe, data, make_batches(data.validation, batch_size))
