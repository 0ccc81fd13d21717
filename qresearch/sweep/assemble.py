"""From the names in a config to the objects they stand for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qresearch.allocation import ALLOCATORS
from qresearch.config import KnownNames, QuantizeConfig, RunConfig, SiteConfig, TrainConfig
from qresearch.cost import COSTS
from qresearch.data import DATASETS, Dataset, resolve_folder
from qresearch.errors import DataError
from qresearch.models import MODELS, Model, Variables, load_npz
from qresearch.numerics.ranges import RANGES
from qresearch.quantizers import QUANTIZERS
from qresearch.rules import AUTO, Rule, SiteRule
from qresearch.tasks import TASKS, Task
from qresearch.training import Recipe

OWN_RANGE = "own"  # the method's own initialisation, such as LSQ's 2 mean|x| / sqrt(qmax)


class Setup(NamedTuple):
    """What all trials of one data set, model and task share."""

    data: Dataset
    model: Model
    task: Task


def known_names() -> KnownNames:
    """The names that config keys may have, from the registries."""
    ranges = (*RANGES, OWN_RANGE, AUTO)
    sites = {"quantizer": QUANTIZERS, "range": ranges}
    return {
        "task": TASKS,
        "data.name": DATASETS,
        "model.name": MODELS,
        "allocation.allocator": ALLOCATORS,
        "allocation.cost": COSTS,
        **{f"quantize.{site}.{key}": names for site in ("weight", "input") for key, names in sites.items()},
    }


def setup_of(config: RunConfig) -> Setup:
    """The data set, model and task of a run. DataError where files are missing or damaged."""
    data = _load_data(config.data.name, config.data.folder)
    return Setup(data, MODELS[config.model.name](data.classes), TASKS[config.task])


def shapes_of(setup: Setup) -> tuple[Any, jax.ShapeDtypeStruct]:
    """(variables, one example's batch) as shapes: enough to find layers without computing anything."""
    x = jax.ShapeDtypeStruct((1, *setup.data.example_shape), np.float32)
    return jax.eval_shape(setup.model.init, jax.random.key(0), x), x


def load_weights(config: RunConfig, setup: Setup) -> Variables:
    """The variables in ``model.weights``: a path, or a file name in ``weights/`` of the data folder."""
    given = Path(config.model.weights or "").expanduser()
    folder = resolve_folder(Path(config.data.folder) if config.data.folder else None)
    places = [given] if folder is None or given.is_absolute() else [given, folder / given, folder / "weights" / given]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        tried = ", ".join(str(path) for path in places)
        raise DataError(f"model.weights: no file {given} (tried {tried}); give its path, or set QRESEARCH_DATA")
    return load_npz(found, shapes_of(setup)[0])


def rules_of(quantize: QuantizeConfig) -> tuple[Rule, ...]:
    """The rules of a config; the last one is the default for all layers that no other matches."""

    def site(value: Any, default: SiteConfig) -> SiteRule | None:
        return None if value == "float" else _site_rule(default if value == "default" else value)

    rules = [
        Rule(
            pattern=rule.pattern,
            weight=site(rule.weight, quantize.weight),
            input=site(rule.input, quantize.input),
            menu=rule.menu or quantize.menu,
            shared=rule.shared,
        )
        for rule in quantize.rules
    ]
    default = Rule("*", _site_rule(quantize.weight), _site_rule(quantize.input), quantize.menu)
    return (*rules, default)


def recipe_of(train: TrainConfig) -> Recipe:
    """The static part of a training config: all but the learning rate."""
    return Recipe(**train.model_dump(exclude={"learning_rate"}))


@functools.lru_cache(maxsize=4)
def _load_data(name: str, folder: str | None) -> Dataset:
    return DATASETS[name](Path(folder).expanduser() if folder else None)


def _site_rule(site: SiteConfig) -> SiteRule:
    values = site.model_dump()
    return SiteRule(**{**values, "range": None if site.range == OWN_RANGE else site.range})
