"""Random search (Bergstra & Bengio 2012, https://jmlr.org/papers/v13/bergstra12a.html)."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from qresearch.config import Domain
from qresearch.suggesters.suggester import Settings, Space, Suggester, rounded


def random(space: Space, seed: int, /) -> Suggester:
    """Independent draws: choices and whole numbers with equal probability, numbers uniformly, or so in their logarithm.

    Bergstra, Bengio, Random Search for Hyper-Parameter Optimization, 2012, https://jmlr.org/papers/v13/bergstra12a.html.
    """
    return _Random(space, seed)


class _Random:
    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.draws = dict(sorted(space.items())), Random(seed)

    def ask(self, count: int) -> list[Settings]:
        return [{key: self._draw(domain) for key, domain in self.space.items()} for _ in range(count)]

    def tell(self, settings: Settings, score: float | None) -> None:
        pass  # it does not learn

    def _draw(self, domain: Domain) -> Any:
        # One draw in [0, 1) for each value: the one stream that Python promises not to change.
        u, (kind, values) = self.draws.random(), domain
        if kind == "choice":
            return values[int(u * len(values))]
        low, high = values
        if kind == "int":
            return low + int(u * (high - low + 1))
        return rounded(
            math.exp((1 - u) * math.log(low) + u * math.log(high)) if kind == "log" else low + u * (high - low), domain
        )
