"""Optuna's samplers (Akiba et al. 2019, https://arxiv.org/abs/1907.10902), without its storage."""

from __future__ import annotations

import json
from typing import Any

from qresearch.config import Domain
from qresearch.errors import ConfigError, did_you_mean
from qresearch.suggesters.suggester import Settings, Space, Suggester, rounded


def optuna(
    space: Space, seed: int, /, *, sampler: str = "tpe", startup_trials: int = 10, population: int = 20
) -> Suggester:
    """The tree-structured Parzen estimator ("tpe"), after ``startup_trials`` random proposals; or the genetic algorithm
    "nsga2" with a ``population``.

    Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011; Deb et al., NSGA-II, 2002; as in Akiba et al.,
    Optuna, 2019, https://arxiv.org/abs/1907.10902. Where we differ: numbers have six digits.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"sweep.suggest.name: optuna cannot be imported ({error}); pip install 'qresearch[optuna]'"
        ) from None
    if population < 2:
        raise ConfigError(f"sweep.suggest: option 'population' of suggester 'optuna' is at least 2, got {population}")
    samplers = {
        # constant_liar: proposals that run at the same time are not all for the same place.
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup_trials, constant_liar=True),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=population),
    }
    if sampler not in samplers:
        raise ConfigError(
            f"sweep.suggest: suggester 'optuna' has no sampler '{sampler}'{did_you_mean(sampler, samplers)}"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _Optuna(optuna.create_study(direction="maximize", sampler=samplers[sampler]()), space)


class _Optuna:
    def __init__(self, study: Any, space: Space) -> None:
        self.study, self.space = study, dict(sorted(space.items()))
        self.asked: dict[str, list[Any]] = {}  # its trials by our settings; there may be equal ones

    def ask(self, count: int) -> list[Settings]:
        return [self._one() for _ in range(count)]

    def _one(self) -> Settings:
        trial = self.study.ask()
        settings = {key: _draw(trial, key, domain) for key, domain in self.space.items()}
        self.asked.setdefault(json.dumps(settings), []).append(trial)
        return settings

    def tell(self, settings: Settings, score: float | None) -> None:
        from optuna.trial import TrialState

        trial = self.asked[json.dumps(settings)].pop(0)
        self.study.tell(trial, score, state=TrialState.FAIL if score is None else None)


def _draw(trial: Any, key: str, domain: Domain) -> Any:
    kind, values = domain
    if kind == "choice":  # by number: its choices cannot be lists
        return values[trial.suggest_categorical(key, list(range(len(values))))]
    if kind == "int":
        return trial.suggest_int(key, *values)
    return rounded(trial.suggest_float(key, *values, log=kind == "log"), domain)
