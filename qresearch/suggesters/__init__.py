"""Suggesters: which settings to try next, from the scores of those that were tried. The records are the only memory."""

from __future__ import annotations

from qresearch.registry import Registry
from qresearch.suggesters.optuna import optuna
from qresearch.suggesters.random import random
from qresearch.suggesters.suggester import MakeSuggester, Settings, Suggester, propose

SUGGESTERS: Registry[MakeSuggester] = Registry(
    "suggesters",
    {
        "random": random,
        "optuna": optuna,
    },
)

__all__ = ["SUGGESTERS", "MakeSuggester", "Settings", "Suggester", "propose"]
