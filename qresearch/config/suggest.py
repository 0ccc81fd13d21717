"""The key ``sweep.suggest``: trials that a suggester proposes, and the values that it may give to each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from qresearch.config.fields import Count, Name, Options, Section, Seed, expect

_LARGEST = 2.0**53  # beyond it floats, in which suggesters calculate, skip whole numbers


class Domain(NamedTuple):
    """What a key may be: one of ``values`` ("choice"), or from the first to the second of them."""

    kind: Literal["choice", "uniform", "log", "int"]
    values: tuple[Any, ...]


def _as_domain(given: Any) -> Any:
    if isinstance(given, list) and given:
        return Domain("choice", tuple(given))
    if not (isinstance(given, Mapping) and len(given) == 1):
        return given
    ((kind, bounds),) = given.items()
    if kind == "int" and _are_bounds(bounds, int):
        return Domain("int", tuple(bounds))
    if kind in ("uniform", "log") and _are_bounds(bounds, int, float) and (kind == "uniform" or bounds[0] > 0):
        return Domain(kind, tuple(float(bound) for bound in bounds))
    return given


def _are_bounds(bounds: Any, *types: type) -> bool:
    pair = isinstance(bounds, list) and len(bounds) == 2 and all(type(bound) in types for bound in bounds)
    return pair and all(abs(bound) <= _LARGEST for bound in bounds) and bounds[0] < bounds[1]


_WORDS = (
    "a list of choices, or one of {uniform: [low, high]}, {log: [low, high]}, {int: [low, high]} with low < high"
    " (log: 0 < low)"
)


class SuggestConfig(Section):
    """So many ``trials`` that the suggester ``name`` proposes from ``space``, ``batch`` at once (see ``qresearch list
    suggesters``). It is told the validation score of every trial before it proposes the next batch.
    """

    name: Name
    trials: Count
    batch: Count = 8
    seed: Seed = 0
    options: Options = ()
    space: Annotated[dict[str, Annotated[Domain, BeforeValidator(_as_domain), expect(_WORDS)]], Field(min_length=1)]
