"""Records of a run as points: trials that differ only in their seeds are one point with a mean and a standard error.

A front is chosen on validation scores and reported with test scores, so that picking the best of many noisy points does
not flatter them. The float model is a point of its own and on no front: it is what the front is held against.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from qresearch.pareto import pareto_front
from qresearch.results.record import Record, content_hash
from qresearch.results.run_folder import RunFolder


class Estimate(NamedTuple):
    """A mean over ``seeds`` values; ``standard_error`` = s/√seeds with s over seeds − 1, none for one seed."""

    mean: float
    standard_error: float | None
    seeds: int


class Problem(NamedTuple):
    """What must agree before two scores may be compared."""

    task: str
    model: str
    data: str
    score_name: str
    higher_is_better: bool = True

    @property
    def score_label(self) -> str:
        """The score's name, and its direction where that is not the usual one."""
        return self.score_name + ("" if self.higher_is_better else " (smaller is better)")


@dataclass(frozen=True)
class Point:
    """The finished trials that differ in seeds only. Costs are means over them: allocations may differ by seed."""

    label: str
    problem: Problem
    flow: str
    quantizer: str
    methods: str
    allocator: str
    allocation: str
    budget: Mapping[str, float] | None
    treatment: str
    costs: Mapping[str, float]
    test: Estimate
    validation: Estimate
    records: tuple[Record, ...]

    @property
    def series(self) -> str:
        """What the points of one line in a figure have in common."""
        return " ".join(part for part in (self.flow, self.quantizer, self.methods, self.allocator) if part != "-")


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one number per seed and its standard error."""
    seeds = len(values)
    mean = math.fsum(values) / seeds
    if seeds == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (seeds - 1)
    return Estimate(mean, math.sqrt(variance / seeds), seeds)


def points_of_run(run: RunFolder, records: Iterable[Record]) -> tuple[Point, ...]:
    """``points_of``, whose labels tell them from trials of the run that were not finished, too: of several learning
    rates, a sweep may have stopped all but one.
    """
    listed = list(records)
    return points_of(listed, run.unfinished({record.key for record in listed if record.status == "done"}))


def points_of(
    records: Iterable[Record], unfinished: Mapping[str, Sequence[Any]] = MappingProxyType({})
) -> tuple[Point, ...]:
    """The points of a run's records, float first, then by series and average bits. Failed trials are left out.

    unfinished: {label: configs} of trials without a record.
    """
    groups = collections.defaultdict(list)
    for record in records:
        if record.status == "done":
            groups[_group_key(record)].append(record)
    points = [_point(sorted(group, key=replicate)) for group in groups.values()]
    points.sort(key=lambda p: (p.problem, p.flow != "float", p.series, p.costs["average_bits"], p.records[0].key))
    return tuple(_distinct_labels(points, unfinished))


def front(points: Sequence[Point], cost: str = "average_bits") -> tuple[int, ...]:
    """Indices of the quantized points on the front of their problem: lower cost, better validation score."""
    chosen: list[int] = []
    for problem in sorted({point.problem for point in points}):
        members = [i for i, p in enumerate(points) if p.problem == problem and p.flow != "float"]
        costs = [points[i].costs[cost] for i in members]
        sign = 1 if problem.higher_is_better else -1
        scores = [sign * points[i].validation.mean for i in members]
        chosen += [members[j] for j in pareto_front(costs, scores)]
    return tuple(chosen)


def direction(points: Iterable[Point]) -> str:
    """Which scores of these points are better when smaller, in words; nothing where none is."""
    names = sorted({point.problem.score_name for point in points if not point.problem.higher_is_better})
    return f"smaller is better: {', '.join(names)}" if names else ""


def problem_of(record: Record) -> Problem:
    """The problem a record belongs to."""
    return Problem(record.task, record.model, record.data, record.score_name, record.higher_is_better)


def replicate(record: Record) -> tuple[tuple[str, int], ...]:
    """Every seed of a trial by dotted name; the trial's own has the name ``""``."""
    seeds = {name: value for name, value in leaves(record.config) if is_seed(name) and isinstance(value, int)}
    return (("", record.seed), *sorted(seeds.items()))


def _group_key(record: Record) -> str:
    allocation = record.allocation
    # A budgeted allocator may find other bits for every seed; without a budget the bits are the point.
    bits = allocation["bits"] if allocation["budget"] is None else None
    rest = {name: value for name, value in leaves(record.config) if not is_seed(name)}
    chosen = [allocation[name] for name in ("layers", "allocator", "budget", "treatment")]
    return content_hash([problem_of(record), record.flow, record.quantizer, chosen, bits, rest])


def _point(records: list[Record]) -> Point:
    first = records[0]
    test, validation = (
        estimate([float(record.metrics[split]["score"]) for record in records]) for split in ("test", "validation")
    )
    costs = {
        name: math.fsum(record.costs[name] or 0.0 for record in records) / len(records)
        for name in first.costs
        if all(name in record.costs for record in records)
    }
    point = Point(
        label="",
        problem=problem_of(first),
        flow=first.flow,
        quantizer=_quantizer_text(first),
        methods="+".join(map(_method_text, first.config.get("ptq", []))) or "-",
        allocator=first.allocation["allocator"] or "-",
        allocation=_allocation_text(first),
        budget=first.allocation["budget"],
        treatment=first.allocation["treatment"],
        costs=costs,
        test=test,
        validation=validation,
        records=tuple(records),
    )
    return replace(point, label="float" if first.flow == "float" else f"{point.series} {point.allocation}")


def _quantizer_text(record: Record) -> str:
    weight, input_ = (record.quantizer[name] or "-" for name in ("weight", "input"))
    return weight if weight == input_ else f"{weight}/{input_}"


def _method_text(method: Mapping[str, Any]) -> str:
    """A post-training method, with its options where it has any: ``prune(sparsity=0.1)``."""
    options = ", ".join(f"{name}={value}" for name, value in method.get("options", []))
    return method["name"] + (f"({options})" if options else "")


def _allocation_text(record: Record) -> str:
    """The budget, or the bits that were asked for: layers that keep others do not rename W4A4."""
    if record.flow == "float":
        return "float"
    budget = record.allocation["budget"]
    if budget:
        return ", ".join(f"{name} {limit:g}" for name, limit in sorted(budget.items()))
    asked = record.config.get("allocation", {}).get("bits")
    if asked:
        return "W{:g}A{:g}".format(*asked)
    pairs = collections.Counter((weight, input_) for weight, input_ in record.allocation["bits"])
    return "W{:g}A{:g}".format(*pairs.most_common(1)[0][0]) if pairs else "-"


def _distinct_labels(points: list[Point], unfinished: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
    """Adds to labels that several points share the config entries in which those points differ."""
    sharing = collections.defaultdict(list)
    for point in points:
        sharing[point.problem, point.label].append(dict(leaves(point.records[0].config)))
        for label in {record.label for record in point.records}:
            sharing[point.problem, point.label] += [dict(leaves(config)) for config in unfinished.get(label, ())]
    for point in points:
        configs = sharing[point.problem, point.label]
        own = dict(leaves(point.records[0].config))
        names = sorted(name for config in configs for name in config if not is_seed(name))
        differing = [n for n in dict.fromkeys(names) if any(c.get(n) != own.get(n) for c in configs)]
        extra = "".join(f" {name}={own.get(name)}" for name in differing)
        yield replace(point, label=point.label + extra)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a nested config by dotted name; lists count as entries."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def is_seed(name: str) -> bool:
    """Whether the config entry of this dotted name is a seed."""
    return name.rpartition(".")[2] == "seed"
