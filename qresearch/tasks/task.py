"""What a task is: the loss a model is trained on and the score it is reported by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from jaxtyping import Array

# (outputs [batch, ...], targets [batch, ...]) -> float32 [batch]
PerExample: TypeAlias = Callable[[Array, Array], Array]


class Task(NamedTuple):
    """``loss`` (lower is better) and ``score`` (higher is better, ``score_name`` in records), per example."""

    loss: PerExample
    score: PerExample
    score_name: str
