"""What a suggester is, and the loop that asks it and tells it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from qresearch.config import Domain

Settings = dict[str, Any]
"""A proposal: a value for every key of the space, by dotted key."""

Space = Mapping[str, Domain]


class Suggester(Protocol):
    """Proposes, and learns from scores. What it proposes depends on its seed and on what it was asked and told, in that
    order, and on nothing else: asked and told the same again, it proposes the same again.
    """

    def ask(self, count: int) -> list[Settings]:
        """So many proposals. The first of them are those of a smaller count."""

    def tell(self, settings: Settings, score: float | None) -> None:
        """The score of a proposal, the larger the better; None where it failed."""


MakeSuggester = Callable[..., Suggester]
"""``(space, seed, /, **options)``: options are those of ``sweep.suggest.options``."""


def propose(
    suggester: Suggester,
    trials: int,
    batch: int,
    scores_of: Callable[[Sequence[Settings]], Sequence[float | None]],
) -> list[Settings]:
    """Asks for ``trials`` proposals, ``batch`` at once, and tells the scores of each batch before it asks for the next.

    ``scores_of`` runs a batch, or looks up what was run before. So a search that was stopped anywhere goes on by being
    done again, and one that was done goes on when ``trials`` grows: the proposals so far are the same.
    """
    found: list[Settings] = []
    while len(found) < trials:
        proposals = suggester.ask(min(batch, trials - len(found)))
        for settings, score in zip(proposals, scores_of(proposals), strict=True):
            suggester.tell(settings, score)
        found += proposals
    return found


def rounded(value: float, domain: Domain) -> float:
    """The number with six digits, within the domain: what another machine computes in its last digits would be another
    trial, and people read configs.
    """
    low, high = domain.values
    return min(max(float(f"{value:.6g}"), low), high)


def value_at(u: float, domain: Domain) -> Any:
    """The value at the share u, in [0, 1), of the domain: choices and whole numbers have equal parts of it, numbers
    lie along it evenly, or so in their logarithm.
    """
    kind, values = domain
    if kind == "choice":
        return values[int(u * len(values))]
    low, high = values
    if kind == "int":
        return low + int(u * (high - low + 1))
    return rounded(
        math.exp((1 - u) * math.log(low) + u * math.log(high)) if kind == "log" else low + u * (high - low), domain
    )
