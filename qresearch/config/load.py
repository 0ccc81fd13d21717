"""From a file and the settings of the command line to the runs they ask for, or to all that is wrong with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from pydantic import ValidationError

from qresearch.config.explain import Explanation, explain
from qresearch.config.halving import HalvingConfig
from qresearch.config.identity import FREE
from qresearch.config.names import KnownNames, require_keys, unknown_names, with_own_costs
from qresearch.config.problems import COMMAND_LINE, MAX_SHOWN, KeyPath, Problem, config_error, shown
from qresearch.config.schema import AllocationConfig, RunConfig, TrainConfig
from qresearch.config.suggest import SuggestConfig
from qresearch.config.sweep_grid import (
    Point,
    Setting,
    SweepSection,
    put,
    split_key,
    suggest_settings,
    sweep_axes,
)
from qresearch.config.yaml_loader import Document, parse_yaml, read_document
from qresearch.errors import ConfigError


@dataclass(frozen=True)
class SweepConfig:
    """A configuration file, and the settings of the command line that prevail over the file and over its sweep."""

    document: Document
    overrides: Point = ()
    settings: tuple[str, ...] = ()  # the overrides as they were given


def load(path: str | PathLike[str], overrides: Sequence[str] = ()) -> SweepConfig:
    """Reads a file and ``key=value`` overrides, and checks every run that they ask for.

    Raises `ConfigError` with one line for every problem. Names are not compared with registries: see `expand`.
    """
    document = read_document(path)
    parsed = [_override(text) for text in overrides]
    problems = (problem for _, found in parsed for problem in found)
    document = document._replace(problems=(*document.problems, *problems))
    sweep = _with_overrides(document, [setting for setting, found in parsed if not found])
    sweep = replace(sweep, settings=tuple(overrides))
    expand(sweep)
    return sweep


def from_mapping(values: Mapping[str, Any], source: str = "config") -> SweepConfig:
    """A config from plain values, as a script or a stored ``resolved`` config has them. ``source``: named in errors."""
    sweep = SweepConfig(Document(source, dict(values), {}))
    expand(sweep)
    return sweep


def expand(sweep: SweepConfig, known: KnownNames | None = None) -> tuple[RunConfig, ...]:
    """The fixed runs of a sweep: in the order of the file, the last axis fastest, equal runs once; none where all are
    suggested.

    ``known``: for keys such as ``data.name`` the names they may have; None: any. Raises `ConfigError` with every
    problem of the file, of the command line and of every run.
    """
    require_keys(known or {})
    axes, explanations = sweep_axes(sweep.document.values.get("sweep"))
    problems = [*sweep.document.problems, *_problems(sweep, (), explanations)]
    # What the file says is checked even where every point of the sweep replaces it; only agreement is up to the runs.
    _, explanations = _run(sweep, sweep.overrides, known)
    fixed = [explanation for explanation in explanations if explanation.about != "agreement"]
    problems += _problems(sweep, sweep.overrides, fixed)
    if axes:
        problems += _problems_of_suggest(sweep, known)
    return _runs(sweep, itertools.product(*axes) if axes else (), known, problems)


def suggestion_of(sweep: SweepConfig) -> SuggestConfig | None:
    """What ``sweep.suggest`` says, of a sweep without problems."""
    values = sweep.document.values.get("sweep")
    return None if values is None else SweepSection.model_validate(values).suggest


def halving_of(sweep: SweepConfig) -> HalvingConfig | None:
    """What ``sweep.halving`` says, of a sweep without problems."""
    values = sweep.document.values.get("sweep")
    return None if values is None else SweepSection.model_validate(values).halving


def any_run(sweep: SweepConfig) -> RunConfig:
    """One run of a sweep, for what all of them share: the name, the output, the engine."""
    return (*expand(sweep), *suggest_ends(sweep))[0]


def suggested(sweep: SweepConfig, settings: Mapping[str, Any], known: KnownNames | None = None) -> RunConfig:
    """The run of a proposal: the file, with these settings by dotted key, and the command line after them. Raises
    `ConfigError` for a run that cannot be, at the lines of the space.
    """
    point = tuple(
        Setting(split_key(key), value, *[("sweep", "suggest", "space", key)] * 2) for key, value in settings.items()
    )
    point = (*point, *sweep.overrides)
    run, explanations = _run(sweep, point, known)
    if run is None or explanations:
        raise config_error(sweep.document.source, _problems(sweep, point, explanations))
    return run


def located(sweep: SweepConfig, config: RunConfig, path: KeyPath, message: str) -> ConfigError:
    """The error that a value of this fixed run cannot be, at the line that gave the value."""
    axes, _ = sweep_axes(sweep.document.values.get("sweep"))
    for point in itertools.product(*axes) if axes else ():
        settings = (*itertools.chain(*point), *sweep.overrides)
        if _run(sweep, settings, None)[0] == config:
            return config_error(
                sweep.document.source, _problems(sweep, settings, [Explanation(path, message, "value")])
            )
    return config_error(sweep.document.source, [Problem(None, path, message)])


def suggest_ends(sweep: SweepConfig, known: KnownNames | None = None) -> tuple[RunConfig, ...]:
    """Runs at the ends of the space, for a check before anything starts: for every key each choice, or the smallest and
    the largest value, with the first of all other keys. Those whose keys do not agree are left out; some always agree.
    """
    return tuple(dict.fromkeys(run for _, run, _ in _ends(sweep, known) if run is not None))


def _ends(sweep: SweepConfig, known: KnownNames | None) -> Iterator[tuple[Point, RunConfig | None, list[Explanation]]]:
    columns = suggest_settings(suggestion_of(sweep))
    first = [column[0] for column in columns]
    for index, column in enumerate(columns):
        for setting in column:
            # The setting comes last, so that it is the one whose line a problem has.
            point = (*first[:index], *first[index + 1 :], setting, *sweep.overrides)
            yield point, *_run(sweep, point, known)


def _problems_of_suggest(sweep: SweepConfig, known: KnownNames | None) -> Iterator[Problem]:
    suggest = suggestion_of(sweep)
    if suggest is None:
        return
    path = ("sweep", "suggest", "name")
    yield from _problems(sweep, (), unknown_names(suggest.name, known or {}, path))
    found = [(point, explanations) for point, _, explanations in _ends(sweep, known)]
    # Whether keys agree is up to the proposals, as long as some can.
    never = all(any(one.about == "agreement" for one in explanations) for _, explanations in found)
    for point, explanations in found:
        yield from _problems(sweep, point, [one for one in explanations if never or one.about != "agreement"])


def sweep_identity(sweep: SweepConfig) -> dict[str, Any]:
    """What makes two configs the same run, as plain values: all that they say, but for ``sweep`` and
    what is in ``FREE``. So trials may be added to a sweep, and results moved or drawn otherwise, without starting anew.
    """
    free = ("sweep", *FREE)
    base = {key: value for key, value in sweep.document.values.items() if key not in free}
    settings = {".".join(path): value for path, value, *_ in sweep.overrides if path[0] not in free}
    return {"base": base, "settings": settings}


def _runs(
    sweep: SweepConfig,
    points: Iterable[tuple[Point, ...]],
    known: KnownNames | None,
    file_problems: Sequence[Problem],
) -> tuple[RunConfig, ...]:
    runs: dict[RunConfig, None] = {}
    problems = dict.fromkeys(file_problems)
    for point in points:
        settings = (*itertools.chain(*point), *sweep.overrides)
        run, explanations = _run(sweep, settings, known)
        problems.update(dict.fromkeys(_problems(sweep, settings, explanations)))
        if run is not None:
            runs[run] = None
        if len(problems) > MAX_SHOWN:
            break
    if problems:
        raise config_error(sweep.document.source, problems)
    return tuple(runs)


def _run(sweep: SweepConfig, settings: Point, known: KnownNames | None) -> tuple[RunConfig | None, list[Explanation]]:
    values: Any = {key: value for key, value in sweep.document.values.items() if key != "sweep"}
    for setting in settings:
        values = put(values, setting.path, setting.value)
    names = list(unknown_names(values, with_own_costs(values, known or {})))
    try:
        return _without_unused(RunConfig.model_validate(values)), names
    except ValidationError as error:
        return None, [*explain(error, RunConfig), *names]


def _without_unused(run: RunConfig) -> RunConfig:
    """The run with defaults for what its flow ignores, so that a grid of flows and bits has one float run, not many."""
    unused: dict[str, Any] = {} if run.flow == "qat" else {"qat": TrainConfig()}
    if run.flow != "ptq":
        unused["ptq"] = ()
    if run.flow == "float":
        unused["allocation"] = AllocationConfig()
    return run.model_copy(update=unused)


def _problems(sweep: SweepConfig, settings: Point, explanations: Iterable[Explanation]) -> Iterator[Problem]:
    """The explanations at their lines, without those that only follow from a problem of form."""
    document = sweep.document
    ill_formed = {problem.line for problem in document.problems} - {COMMAND_LINE}
    for explanation in explanations:
        line = _line(document.lines, settings, explanation)
        follows = bool(document.problems) and explanation.about == "agreement"
        if not follows and line not in ill_formed:
            yield Problem(line, explanation.path, explanation.message)


def _line(lines: Mapping[KeyPath, int], settings: Point, explanation: Explanation) -> int | None:
    """The line of the last setting that touched the key, or else of the key itself or the section it is missing in."""
    path = explanation.path
    for setting in reversed(settings):
        shared = min(len(path), len(setting.path))
        if path[:shared] == setting.path[:shared]:
            about_key = explanation.about == "key" and shared == len(path)
            origin = setting.key_origin if about_key else setting.value_origin
            return COMMAND_LINE if origin is None else _nearest(lines, (*origin, *path[shared:]))
    return _nearest(lines, path)


def _nearest(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    return next((lines[path[:size]] for size in range(len(path), -1, -1) if path[:size] in lines), None)


def _override(text: str) -> tuple[Setting, list[Problem]]:
    key, equals, value_text = text.partition("=")
    key = key.strip()
    if not key or not equals or not key.isprintable():
        return Setting((), None), [Problem(COMMAND_LINE, (), f"expected key=value, got {shown(text)}")]
    value, _, problems = parse_yaml(value_text)
    path = split_key(key)
    return Setting(path, value), [problem._replace(line=COMMAND_LINE, path=path) for problem in problems]


def _with_overrides(document: Document, settings: Sequence[Setting]) -> SweepConfig:
    """Settings of the sweep itself change the document; all others come after the sweep, as the last word."""
    for path, value, _, _ in settings:
        if path[0] == "sweep":
            kept = {key: line for key, line in document.lines.items() if key[: len(path)] != path}
            document = document._replace(values=put(document.values, path, value), lines={**kept, path: COMMAND_LINE})
    return SweepConfig(document, tuple(setting for setting in settings if setting.path[0] != "sweep"))
