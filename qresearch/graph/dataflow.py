"""The dataflow lattice: where a value in a jaxpr comes from.

Every value is one of three: *data* (depends on an input), an *origin* (computed from parameters alone: transposed,
cast, scaled, merged, sliced, ... and still a kernel), or a *constant*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from qresearch.graph.layer import Unassigned

DATA = "data"
CONSTANT = "constant"


@dataclass(frozen=True)
class Origin:
    """A value computed from parameters alone. ``levels``: the enclosing scans that hand it out a slice an iteration.

    recipe: a hash of what was done to the parameters; equal for values that are equal but for their dtype.
    """

    paths: tuple[str, ...]
    levels: frozenset[int] = frozenset()
    recipe: int = 0


Flow = Origin | str


def merge(flows: Sequence[Flow]) -> Flow:
    """The flow of something computed from all of these: data if any is, else an origin if any is, else a constant."""
    if any(flow == DATA for flow in flows):
        return DATA
    origins = [flow for flow in flows if isinstance(flow, Origin)]
    if not origins:
        return CONSTANT
    paths = tuple(dict.fromkeys(path for origin in origins for path in origin.paths))
    recipe = origins[0].recipe if len(origins) == 1 else hash(tuple((o.paths, o.recipe) for o in origins))
    return Origin(paths, frozenset().union(*(origin.levels for origin in origins)), recipe)


@dataclass
class Discovery:
    """What a walk over a jaxpr collects. shapes: of all parameters, by path. examples: of the traced batch. scope: the
    named scopes around the equation that the walk is at. hidden: what a rule may ask for, but which cannot be reached.
    """

    shapes: dict[str, tuple[int, ...]]
    examples: int = 1
    unassigned: list[Unassigned] = field(default_factory=list)
    uses: dict[str, int] = field(default_factory=dict)
    scope: tuple[str, ...] = ()
    hidden: list[Unassigned] = field(default_factory=list)

    def claim(self, origin: Origin, shape: tuple[int, ...], prefix: str = "") -> tuple[str, str]:
        """(base name, parameter path) of a new layer whose kernel has this origin and shape.

        A kernel made of several parameters (weight normalization, LoRA) is named after the one with its number of
        elements, else after the largest.
        """
        elements = math.prod(shape)
        sizes = {path: math.prod(self.shapes[path]) for path in origin.paths}
        path = min(sizes, key=lambda p: (sizes[p] != elements, -sizes[p]))
        return self.numbered(prefix + layer_name(path)), path

    def numbered(self, name: str) -> str:
        """The name for its first use, ``name#2`` for the second."""
        self.uses[name] = self.uses.get(name, 0) + 1
        return name + (f"#{self.uses[name]}" if self.uses[name] > 1 else "")

    def per_example(self, macs: int) -> int:
        """The macs of a batch as macs per example, rounded up."""
        return -(-macs // self.examples)


def layer_name(path: str) -> str:
    """A parameter's path without Flax's collection: ``params/Conv_0/kernel`` is ``Conv_0/kernel``."""
    return path.removeprefix("params/")
