"""The plan of a jaxpr: which of its equations are layers, and which hold some."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qresearch.graph.dataflow import Origin
from qresearch.graph.layer import Contraction


@dataclass(frozen=True, eq=False)
class Site:
    """A layer's place in the jaxpr; ``base`` is its name without iterations.

    levels: the enclosing scans (0 the outermost) that give it a kernel each iteration, and ``iterations`` their
    lengths: it stands for that many layers. calls: how often the other enclosing scans execute each of them. recipe:
    see ``Origin``.
    """

    base: str
    parameter: str
    contraction: Contraction
    levels: tuple[int, ...] = ()
    iterations: tuple[int, ...] = ()
    calls: int = 1
    recipe: int = 0


def kernel_site(base: str, parameter: str, contraction: Contraction, origin: Origin, scans: tuple[int, ...]) -> Site:
    """The site of a layer whose kernel has this origin, inside scans of these lengths."""
    levels = tuple(sorted(origin.levels))
    iterations = tuple(scans[level] for level in levels)
    calls = math.prod(length for level, length in enumerate(scans) if level not in origin.levels)
    return Site(base, parameter, contraction, levels, iterations, calls, origin.recipe)


@dataclass(frozen=True, eq=False)
class Nested:
    """An equation whose inner jaxpr holds layers. kind: "jit", "remat" or "scan"; level: of that scan."""

    kind: str
    plan: Plan
    level: int = 0

    @property
    def iterated(self) -> frozenset[str]:
        """The bases of the sites to which this scan gives a kernel each iteration."""
        return frozenset(site.base for site in self.plan.sites() if self.level in site.levels)


@dataclass(eq=False)
class Plan:
    """A jaxpr with the equations (by index) that the interpreter must not simply run."""

    jaxpr: Any
    consts: tuple[Any, ...]
    entries: dict[int, Site | Nested] = field(default_factory=dict)

    def sites(self) -> Iterator[Site]:
        """All sites, in the order of execution."""
        for entry in self.entries.values():
            yield from (entry,) if isinstance(entry, Site) else entry.plan.sites()
