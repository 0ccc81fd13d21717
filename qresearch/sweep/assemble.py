"""From the names in a config to the objects they stand for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qresearch.allocation import ALLOCATORS
from qresearch.checkpoint import load_checkpoint
from qresearch.config import KnownNames, QuantizeConfig, RunConfig, SiteConfig, TrainConfig
from qresearch.cost import COSTS, Cost
from qresearch.cost_table import read_cost_table
from qresearch.data import DATASETS, Dataset, resolve_folder
from qresearch.errors import ConfigError, DataError, did_you_mean
from qresearch.graph.layer import PRODUCT
from qresearch.latency import DEVICES, roofline
from qresearch.models import MODELS, Model, Variables, load_npz
from qresearch.numerics.ranges import RANGES
from qresearch.ptq import PTQ, Method, make_methods
from qresearch.quantizers import QUANTIZERS
from qresearch.rules import AUTO, Rule, SiteRule
from qresearch.search import SEARCHES
from qresearch.sensitivities import SENSITIVITIES
from qresearch.suggesters import SUGGESTERS
from qresearch.tasks import TASKS, Task
from qresearch.trackers import TRACKERS
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
        "ptq.name": PTQ,
        "sensitivity.method": SENSITIVITIES,
        "allocation.allocator": (*ALLOCATORS, *SEARCHES),
        "allocation.cost": COSTS,
        "report.cost": COSTS,
        "costs.device": DEVICES,
        "trackers": TRACKERS,
        "sweep.suggest.name": SUGGESTERS,
        **{f"quantize.{site}.{key}": names for site in ("weight", "input") for key, names in sites.items()},
    }


def costs_of(config: RunConfig) -> dict[str, Cost]:
    """``COSTS`` and the config's own. ConfigError for one that cannot be read, or for a limit on one that is not
    there.
    """
    found = dict(COSTS)
    for own in config.costs:
        if own.name in found:
            raise ConfigError(f"costs: '{own.name}' is there already; choose another name")
        path = None if own.csv is None else Path(own.csv).expanduser()
        found[own.name] = roofline(own.device or "", own.batch) if path is None else read_cost_table(path, own.unit)
    for name, _ in config.allocation.limits:
        if name not in found:
            raise ConfigError(f"allocation.limits: cost '{name}' is not known{did_you_mean(name, found)}")
    return found


def setup_of(config: RunConfig) -> Setup:
    """The data set, model and task of a run. DataError where files are missing or damaged."""
    data = _load_data(config.data.name, config.data.folder)
    return Setup(data, MODELS[config.model.name](data.classes), TASKS[config.task])


def shapes_of(setup: Setup) -> tuple[Any, jax.ShapeDtypeStruct]:
    """(variables, one example's batch) as shapes: enough to find layers without computing anything."""
    x = example_of(setup.data)
    return jax.eval_shape(setup.model.init, jax.random.key(0), x), x


def example_of(data: Dataset) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a batch of one example as the model gets it: images are float32, characters are int32."""
    raw = np.asarray(data.train.inputs[:1])
    return jax.eval_shape(data.prepare, jax.ShapeDtypeStruct(raw.shape, raw.dtype))


def load_weights(config: RunConfig, setup: Setup) -> Variables:
    """The variables in ``model.weights``, npz or checkpoint: a path, or a name in ``weights/`` of the data folder."""
    given = Path(config.model.weights or "").expanduser()
    folder = resolve_folder(Path(config.data.folder) if config.data.folder else None)
    places = [given] if folder is None or given.is_absolute() else [given, folder / given, folder / "weights" / given]
    found = next((path for path in places if path.exists()), None)
    if found is None:
        tried = ", ".join(str(path) for path in places)
        raise DataError(f"model.weights: no file {given} (tried {tried}); give its path, or set QRESEARCH_DATA")
    read = load_checkpoint if found.is_dir() else load_npz
    return read(found, shapes_of(setup)[0])


def sites_of(quantize: QuantizeConfig) -> dict[tuple[str, ...], SiteConfig]:
    """Every site that a config describes, by the path of its key."""
    found: dict[tuple[str, ...], Any] = {("weight",): quantize.weight, ("input",): quantize.input}
    for index, rule in enumerate(quantize.rules):
        found |= {("rules", str(index), name): site for name, site in (("weight", rule.weight), ("input", rule.input))}
    return {("quantize", *path): site for path, site in found.items() if isinstance(site, SiteConfig)}


def rules_of(quantize: QuantizeConfig) -> tuple[Rule, ...]:
    """The rules of a config; the last one is the default for all layers that no other matches."""

    def site(value: Any, default: SiteConfig) -> SiteRule | None:
        return None if value == "float" else site_rule(default if value == "default" else value)

    rules = [
        Rule(
            pattern=rule.pattern,
            # Both operands of a product are data: a kernel's default granularity would not fit.
            weight=site(rule.weight, quantize.input if rule.pattern.startswith(PRODUCT) else quantize.weight),
            input=site(rule.input, quantize.input),
            menu=rule.menu or quantize.menu,
            shared=rule.shared,
        )
        for rule in quantize.rules
    ]
    default = Rule("*", site_rule(quantize.weight), site_rule(quantize.input), quantize.menu)
    return (*rules, default)


def methods_of(config: RunConfig) -> tuple[Method, ...]:
    """The post-training methods of a run. ConfigError for an option that a method does not have, or an order that
    cannot be.
    """
    return make_methods([(method.name, dict(method.options)) for method in config.ptq])


def recipe_of(train: TrainConfig) -> Recipe:
    """The static part of a training config: all but the learning rate and the number of examples."""
    return Recipe(**train.model_dump(exclude={"learning_rate", "examples"}))


@functools.lru_cache(maxsize=4)
def _load_data(name: str, folder: str | None) -> Dataset:
    return DATASETS[name](Path(folder).expanduser() if folder else None)


def site_rule(site: SiteConfig) -> SiteRule:
    """The rule of a site of a config."""
    values = site.model_dump()
    return SiteRule(**{**values, "range": None if site.range == OWN_RANGE else site.range})
