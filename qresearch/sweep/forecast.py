"""What a sweep would do: its trials, groups, programs and pieces, and the time that records of its kind took."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qresearch.config import (
    RunConfig,
    SweepConfig,
    TrainConfig,
    any_run,
    config_hash,
    resolved,
    suggestion_of,
    sweep_identity,
)
from qresearch.engines.base import KEPT
from qresearch.results import Record, list_runs, open_run
from qresearch.results.run_folder import run_path
from qresearch.sweep.floats import float_key, is_stored
from qresearch.sweep.plan import Group, float_pieces, groups_of, trial_pieces
from qresearch.sweep.run import plan_sweep

FLOWS = ("float", "ptq", "qat")


def forecast_lines(sweep: SweepConfig, workers: int) -> list[str]:
    """One line each: trials, groups, programs, pieces for so many workers, and the time, of what is still to do."""
    configs = plan_sweep(sweep)
    first, suggestion = any_run(sweep), suggestion_of(sweep)
    output = Path(first.output).expanduser()
    folder = run_path(output, first.name, sweep_identity(sweep))
    done = open_run(folder).done() if (folder / "resolved.json").is_file() else frozenset()
    todo = [config for config in configs if config_hash(config) not in done]
    groups = [
        group._replace(members=tuple(c for c in group.members if config_hash(c) not in done))
        for group in groups_of(configs)
    ]
    groups = [group for group in groups if group.members]
    floats = float_pieces(groups, lambda config: is_stored(config, folder / "float"), workers)
    trials = trial_pieces(groups, workers, KEPT, 1)
    trained = {key for piece in floats for key in piece.floats}
    lines = [f"trials    {len(configs)} ({flow_counts(configs)}), {len(done & set(map(config_hash, configs)))} done"]
    if suggestion is not None:
        lines.append(f"suggested {suggestion.trials} more, {suggestion.batch} at a time; below are those of the file")
    lines += [f"group     {_group(group, trained)}" for group in groups]
    programs = sum((programs_of(group, trained) for group in groups), Counter[str]())
    lines.append(f"programs  {programs.total()}" + "".join(f", {n} of {name}" for name, n in programs.items()))
    lines.append(f"pieces    {len(floats)} of float training, {len(trials)} of trials, for {workers} at a time")
    return [*lines, f"time      {_time(todo, _records(output), workers)}"]


def flow_counts(configs: Iterable[RunConfig]) -> str:
    """Such as ``3 float, 30 ptq``."""
    counts = Counter[str](config.flow for config in configs)
    return ", ".join(f"{counts[flow]} {flow}" for flow in FLOWS if counts[flow])


def programs_of(group: Group, trained: Iterable[str]) -> Counter[str]:
    """The large programs that a group compiles, by kind, if one worker runs it: what trials differ in is data."""
    members, found = group.members, Counter[str]()
    keys = {float_key(config) for config in members} & set(trained)
    recipes = {_static(config.float_training) for config in members if float_key(config) in keys}
    found["float training"] = 2 * len(recipes)  # a step and its evaluation
    found["calibration"] = int(any(config.flow != "float" for config in members))
    found["evaluation"] = int(any(config.flow != "qat" for config in members))
    measured = [c for c in members if c.allocation.budget is not None or c.quantize.keep.most_sensitive]
    found["sensitivity"] = len({config.sensitivity for config in measured})
    found["QAT"] = 2 * len({_static(config.qat) for config in members if config.flow == "qat"})
    found["post-training lists"] = len({config.ptq for config in members if config.ptq})
    return +found


def _static(recipe: TrainConfig) -> TrainConfig:
    return recipe.model_copy(update={"learning_rate": 1.0})


def _group(group: Group, trained: set[str]) -> str:
    first = group.members[0]
    sites = (first.quantize.weight.quantizer, first.quantize.input.quantizer)
    floats = {float_key(config) for config in group.members}
    return (
        f"{first.model.name} on {first.data.name}, {'+'.join(dict.fromkeys(sites))}: {len(group.members)} trials"
        f" ({flow_counts(group.members)}) of {len(floats)} float models, {len(floats & trained)} to be trained"
    )


def _time(todo: Sequence[RunConfig], records: Sequence[Record], workers: int) -> str:
    """From the seconds of records of the same model, data, flow, recipe and methods, without compilation."""
    known: dict[str, list[float]] = {}
    for record in records:
        known.setdefault(_kind(record.config), []).append(record.seconds)
    times = [known.get(_kind(resolved(config))) for config in todo]
    missing = sum(found is None for found in times)
    if missing == len(todo):
        return "nothing to do" if not todo else "not known: no record of such trials in the output folder"
    seconds = sum(statistics.median(found) for found in times if found is not None) / workers
    rest = f"; {missing} trials of kinds that have no record are not in it" if missing else ""
    return f"{seconds:.0f} s and compilation and searches, as records of such trials took{rest}"


def _kind(config: Mapping[str, Any]) -> str:
    recipe = {name: value for name, value in config.get("qat", {}).items() if name != "learning_rate"}
    return json.dumps(
        [*(config.get(name) for name in ("model", "data", "flow", "ptq", "evaluate")), recipe], sort_keys=True
    )


def _records(output: Path) -> list[Record]:
    found = []
    for row in list_runs(output):
        if row.problem is None:  # `qresearch runs` names the others
            found += [record for record in open_run(row.path).records().records if record.status == "done"]
    return found
