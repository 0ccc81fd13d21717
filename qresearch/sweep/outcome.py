"""From what a trial produced to its record."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from qresearch.config import RunConfig, config_hash, identity_of, search_name, trial_label
from qresearch.cost import COSTS
from qresearch.errors import ConfigError
from qresearch.evaluation import Scores
from qresearch.qmodel import QuantizedModel
from qresearch.results import Record, environment
from qresearch.sweep.assemble import costs_of
from qresearch.sweep.sources import sources_of
from qresearch.tasks import Task

FLOAT_BITS = 32.0
Split = Literal["test", "validation"]


class Outcome(NamedTuple):
    """A finished or failed trial, or one that was stopped on its way. test, validation: of one model. extra: further
    metrics, numbers only. stopped: (epoch, validation score, larger for the better).
    """

    config: RunConfig
    bits: Float[np.ndarray, "layers 2"]
    seconds: float
    test: Scores | None = None
    validation: Scores | None = None
    extra: Mapping[str, Any] = {}
    failure: str | None = None
    stopped: tuple[int, float] | None = None

    @classmethod
    def lost(cls, config: RunConfig, layers: int, reason: str) -> Outcome:
        """A trial that failed before anything is known about its bits."""
        return cls(config, np.full((layers, 2), FLOAT_BITS, np.float32), 0.0, failure=reason)


def checkpoint_path(run: Path, config: RunConfig) -> Path:
    """Where a trial keeps the variables and qparams that training or post-training methods gave it."""
    return run / "checkpoints" / config_hash(config)[:16]


def make_record(outcome: Outcome, model: QuantizedModel, task: Task) -> Record:
    """The record of an outcome; ``model`` gives the layers, the costs and the treatment of pinned ones."""
    config = outcome.config
    quantized = config.flow != "float"
    sites = {"weight": config.quantize.weight, "input": config.quantize.input}
    return Record(
        key=config_hash(config),
        label=trial_label(config),
        status="done" if outcome.failure is None else "failed",
        reason=outcome.failure,
        # Where it ran and is stored is not what it is: a sweep that goes on elsewhere is the same sweep.
        config=identity_of(config),
        seed=config.seed,
        task=config.task,
        model=config.model.name,
        data=config.data.name,
        flow=config.flow,
        quantizer={name: site.quantizer if quantized else None for name, site in sites.items()},
        allocation=_allocation(config, outcome.bits, model),
        costs=_costs(outcome.bits, model) | _own_costs(config, outcome.bits, model),
        metrics=_metrics(outcome, task),
        score_name=task.score_name,
        higher_is_better=task.higher_is_better,
        seconds=float(outcome.seconds),
        environment={**_environment(), "sources": sources_of(config)},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def checked(outcome: Outcome) -> Outcome:
    """The outcome; a failed one where a loss is not finite, which no record of a finished trial may hold."""
    found = not_finite(outcome)
    if found is None:
        return outcome
    reason = outcome.failure or f"{found[1]}; the weights have diverged"
    return Outcome(outcome.config, outcome.bits, outcome.seconds, failure=reason)


def not_finite(outcome: Outcome) -> tuple[Split, str] | None:
    """The first split on which a loss is not finite, and on how many of its examples, in words."""
    splits: dict[Split, Scores | None] = {"test": outcome.test, "validation": outcome.validation}
    for name, scores in splits.items():
        bad = 0 if scores is None else int(np.sum(~np.isfinite(scores.loss)))
        if scores is not None and bad:
            return name, f"the {name} loss is not finite on {bad} of {len(scores.loss)} examples"
    return None


def treatment(model: QuantizedModel) -> str:
    """How layers that are not free were treated: it changes average bits and accuracy, so every record says it."""
    free = {layer.name for layer in model.layers}
    pinned = [
        f"{unit.layer.name} W{menu[0][0]}A{menu[0][1]}"
        for unit, menu in zip(model.units, model.menus)
        if len(menu) == 1
    ]
    in_float = [layer.name for layer in next(iter(model.graphs.values())).layers if layer.name not in _covered(model)]
    operands = [
        f"{unit.layer.name} {operand}"
        for unit in model.units
        for operand, quantizer in (("weight", unit.weight), ("input", unit.input))
        if quantizer is None
    ]
    parts = [f"pinned: {', '.join(pinned)}"] if pinned else []
    parts += [f"in float: {', '.join(in_float + operands)}"] if in_float + operands else []
    return "; ".join(parts) or f"all {len(free)} layers free, first and last included"


def _covered(model: QuantizedModel) -> set[str]:
    return {use.name for unit in model.units for use in unit.uses}


def _allocation(config: RunConfig, bits: np.ndarray, model: QuantizedModel) -> dict[str, Any]:
    allocation = config.allocation
    budgeted = config.flow != "float" and allocation.budget is not None
    allocator = None if config.flow == "float" else search_name(config) if budgeted else "uniform"
    return {
        "layers": [layer.name for layer in model.layers],
        "bits": [[float(w), float(a)] for w, a in bits],
        "allocator": allocator,
        "budget": {allocation.cost: float(allocation.budget or 0.0), **dict(allocation.limits)} if budgeted else None,
        "treatment": "; ".join([treatment(model), *_kept(config, bits, model)]),
    }


def _kept(config: RunConfig, bits: np.ndarray, model: QuantizedModel) -> list[str]:
    """The free layers that keep other bits than the trial asked for all."""
    if config.flow == "float" or config.allocation.bits is None or not config.quantize.keep.most_sensitive:
        return []
    option = "W{}A{}".format(*config.quantize.keep.option)
    free = [len(menu) > 1 for menu in model.menus]
    kept = [
        layer.name
        for layer, row, own in zip(model.layers, bits, free)
        if own and tuple(row) == tuple(config.quantize.keep.option)
    ]
    return [f"most sensitive, {option}: {', '.join(kept)}"] if kept else []


def _costs(bits: np.ndarray, model: QuantizedModel) -> dict[str, float]:
    return {name: float(cost.of(model.counts, bits)) for name, cost in COSTS.items()}


def _own_costs(config: RunConfig, bits: np.ndarray, model: QuantizedModel) -> dict[str, float]:
    """Those of the config's own costs that have a price for these bits: a measured table has none for float."""
    found = {}
    for own in config.costs:
        try:
            found[own.name] = float(costs_of(config)[own.name].of(model.counts, bits))
        except ConfigError:
            continue
    return found


def _metrics(outcome: Outcome, task: Task) -> dict[str, Any]:
    splits = {"test": outcome.test, "validation": outcome.validation}
    found = {name: summary(scores, task) for name, scores in splits.items() if scores is not None}
    return found | dict(outcome.extra)


def summary(scores: Scores, task: Task) -> dict[str, float]:
    """The mean loss and the score of one model."""
    # float64: the sum of large but finite losses overflows float32.
    return {"loss": float(np.mean(scores.loss, dtype=np.float64)), "score": task.reduce(scores.score)}


def per_example(scores: Scores, task: Task) -> dict[str, np.ndarray]:
    """The losses and scores of one model as records keep them: [example] each, whose means are ``summary``."""
    return {"loss": scores.loss, "score": task.shares(scores.score)}


@functools.cache
def _environment() -> dict[str, Any]:
    return environment()
