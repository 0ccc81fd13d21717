"""Random search (Bergstra & Bengio 2012, https://jmlr.org/papers/v13/bergstra12a.html)."""

from __future__ import annotations

from random import Random

from qresearch.suggesters.suggester import Settings, Space, Suggester, value_at


def random(space: Space, seed: int, /) -> Suggester:
    """Independent draws: choices and whole numbers with equal probability, numbers uniformly, or so in their logarithm.

    Bergstra, Bengio, Random Search for Hyper-Parameter Optimization, 2012, https://jmlr.org/papers/v13/bergstra12a.html.
    """
    return _Random(space, seed)


class _Random:
    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.draws = dict(sorted(space.items())), Random(seed)

    def ask(self, count: int) -> list[Settings]:
        # One draw in [0, 1) for each value: the one stream that Python promises not to change.
        return [
            {key: value_at(self.draws.random(), domain) for key, domain in self.space.items()} for _ in range(count)
        ]

    def tell(self, settings: Settings, score: float | None) -> None:
        pass  # it does not learn
