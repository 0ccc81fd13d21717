"""The key ``sweep`` of a file: the points of ``grid`` x ``zip`` x ``list``, each a few settings of dotted keys; and
the space of what is suggested beside them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError

from qresearch.config.explain import Explanation, explain
from qresearch.config.fields import Section
from qresearch.config.halving import HalvingConfig
from qresearch.config.problems import KeyPath, shown
from qresearch.config.suggest import Domain, SuggestConfig
from qresearch.config.yaml_loader import MAX_DEPTH

# Ten thousand runs of a second each are three hours; more is a slip of the grid, and would only fill memory.
MAX_RUNS = 10_000
# Where trials run and results go belongs to the sweep as a whole, and a sweep within a sweep means nothing.
_NOT_SWEPT = ("name", "output", "engine", "checkpoints", "trackers", "sweep")


class Setting(NamedTuple):
    """A value for the key at ``path``, and where the file holds that key and that value (None: on the command line)."""

    path: KeyPath
    value: Any
    key_origin: KeyPath | None = None
    value_origin: KeyPath | None = None


Point = tuple[Setting, ...]
Values = Annotated[list[Any], Field(min_length=1)]


class SweepSection(Section):
    """Values for dotted keys of the run: every combination, side by side, and one by one; and keys to suggest for."""

    grid: dict[str, Values] = Field({}, alias="grid")
    zipped: dict[str, Values] = Field({}, alias="zip")
    items: Annotated[list[dict[str, Any]], Field(min_length=1)] = Field([{}], alias="list")
    suggest: SuggestConfig | None = None
    halving: HalvingConfig | None = None


def sweep_axes(sweep: Any) -> tuple[list[list[Point]], list[Explanation]]:
    """The axes whose product is the sweep, or no axes and what is wrong (paths begin at the top of the file).

    One axis per grid key, one for ``zip``, one for ``list``; without a sweep, one point without settings; where all is
    suggested, no point.
    """
    try:
        section = SweepSection.model_validate({} if sweep is None else sweep)
    except ValidationError as error:
        found = explain(error, SweepSection)
        return [], [problem._replace(path=("sweep", *problem.path)) for problem in found]
    suggested = [settings[0] for settings in suggest_settings(section.suggest)]
    grid = [_column("grid", key, values) for key, values in section.grid.items()]
    zipped = [_column("zip", key, values) for key, values in section.zipped.items()]
    items = [_item(str(index), item) for index, item in enumerate(section.items)]
    # zip() cuts columns of unequal length, which _problems reports.
    side_by_side = [[tuple(row) for row in zip(*zipped)]] if zipped else []
    axes = [*([(setting,) for setting in column] for column in grid), *side_by_side, items]
    if section.suggest is not None and section.model_fields_set <= {"suggest", "halving"}:
        axes = [[]]
    runs = math.prod(map(len, axes)) + (0 if section.suggest is None else section.suggest.trials)
    problems = [*_problems(grid, zipped, items, runs), *_clashes(suggested), *_too_many(section.suggest)]
    return ([] if problems else axes), problems


def suggest_settings(suggest: SuggestConfig | None) -> list[list[Setting]]:
    """For every key of the space its choices, or its smallest and largest value."""
    space = {} if suggest is None else suggest.space
    return [
        [
            Setting(split_key(key), value, ("sweep", "suggest", "space", key), _place(key, domain, index))
            for index, value in enumerate(domain.values)
        ]
        for key, domain in space.items()
    ]


def _too_many(suggest: SuggestConfig | None) -> Iterator[Explanation]:
    values = 0 if suggest is None else sum(len(domain.values) for domain in suggest.space.values())
    if values > MAX_RUNS:
        yield Explanation(("sweep", "suggest", "space"), f"expected at most {MAX_RUNS} choices, got {values}", "value")


def _place(key: str, domain: Domain, index: int) -> KeyPath:
    inner = () if domain.kind == "choice" else (domain.kind,)
    return ("sweep", "suggest", "space", key, *inner, str(index))


def _column(kind: str, key: str, values: Sequence[Any]) -> list[Setting]:
    origin = ("sweep", kind, key)
    return [Setting(split_key(key), value, origin, (*origin, str(index))) for index, value in enumerate(values)]


def _item(index: str, item: dict[str, Any]) -> Point:
    origins = {key: ("sweep", "list", index, key) for key in item}
    return tuple(Setting(split_key(key), value, origins[key], origins[key]) for key, value in item.items())


def split_key(key: str) -> KeyPath:
    """The parts of a dotted key. Below ``sweep`` the dots of the swept key are not separators."""
    parts = key.split(".", MAX_DEPTH)
    if parts[:2] in (["sweep", "grid"], ["sweep", "zip"]):
        return tuple(key.split(".", 2))
    if parts[:3] == ["sweep", "suggest", "space"]:
        return tuple(key.split(".", 3))
    return tuple(key.split(".", 3)) if parts[:2] == ["sweep", "list"] else tuple(parts)


def _problems(
    grid: Sequence[Sequence[Setting]], zipped: Sequence[Sequence[Setting]], items: Sequence[Point], runs: int
) -> Iterator[Explanation]:
    if len({len(column) for column in zipped}) > 1:
        lengths = {".".join(column[0].path): len(column) for column in zipped}
        yield Explanation(("sweep", "zip"), f"expected lists of equal length, got {shown(lengths)}", "value")
    if runs > MAX_RUNS:
        got = str(runs) if runs < 10**18 else "more than 10^18"  # Python refuses to print thousands of digits
        yield Explanation(("sweep",), f"expected at most {MAX_RUNS} runs, got {got}", "value")
    columns = [column[0] for column in (*grid, *zipped)]
    for item in items if runs <= MAX_RUNS else ():
        yield from _clashes([*columns, *item])


def _clashes(settings: Sequence[Setting]) -> Iterator[Explanation]:
    """Keys of one run of which a second setting would overwrite the first."""
    counts = Counter(setting.path for setting in settings)
    for path, _, origin, _ in settings:
        assert origin is not None
        parents = (path[:length] for length in range(1, len(path)))
        taken = next((parent for parent in parents if parent in counts), path if counts[path] > 1 else None)
        if path[0] in _NOT_SWEPT:
            yield Explanation(origin, "cannot be swept; it is the same for all runs of a file", "key")
        elif taken is not None:
            yield Explanation(origin, f"the sweep also sets '{'.'.join(taken)}'; set each key in one place", "key")


def put(node: Any, path: KeyPath, value: Any) -> Any:
    """A copy of the values with the one at ``path`` replaced, or added with the sections it needs."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, list) and head in map(str, range(len(node))):
        return [put(item, rest, value) if head == str(index) else item for index, item in enumerate(node)]
    children = node if isinstance(node, dict) else {}
    return {**children, head: put(children.get(head), rest, value)}
