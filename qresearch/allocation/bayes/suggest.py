"""Which whole allocations to measure next: those that may be better than the best measured one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.special import ndtr

from qresearch.allocation.bayes import METHODS
from qresearch.allocation.bayes.decisions import best_expected, draw_optima
from qresearch.allocation.bayes.measurements import Joint
from qresearch.allocation.bayes.posterior import Posterior
from qresearch.allocation.budgets import Limits, check_budgets, within
from qresearch.allocation.problem import Problem
from qresearch.errors import ConfigError


def suggest(
    seed: int | np.random.Generator,
    n: int,
    posterior: Posterior,
    problem: Problem,
    budgets: ArrayLike,
    known: Joint,
    method: str = "expected_improvement",
) -> Int[np.ndarray, "n layer"]:
    """Up to ``n`` allocations that are not ``known`` yet, each within one of the budgets; fewer where no more are of
    interest. known: what was measured, see ``Measurements.tried``.

    "thompson": the optima of random posterior draws (Thompson, On the Likelihood that One Unknown Probability Exceeds
    Another, 1933). "expected_improvement": of the optima of all draws and the chosen ones with one layer changed, those
    of greatest E[max(best − y, 0)], y the predicted loss with its interaction, summed over the budgets that they
    meet (Jones, Schonlau and Welch, Efficient Global Optimization, https://doi.org/10.1023/A:1008306431147, 1998).
    Where we differ: a batch is the n best ones, not re-estimated one after the other.
    ConfigError for another method, BudgetError for a budget that no allocation meets.
    """
    if method not in METHODS:
        raise ConfigError(f"suggestions are made by {' or '.join(METHODS)}, got '{method}'")
    limits, random = check_budgets(problem, budgets), np.random.default_rng(seed)
    loss = posterior.sensitivity
    best_of_draws = random.permutation(draw_optima(loss, problem, limits).allocations.reshape(-1, len(problem.loss)))
    if method == "thompson":
        return _new(best_of_draws, known)[:n]
    chosen = best_expected(loss, problem, limits)
    candidates = np.concatenate([best_of_draws, *(_changed(problem, row) for row in chosen)])
    candidates = _new(candidates[within(problem, candidates, limits).any(axis=0)], known)
    gain = expected_improvement(posterior, problem, limits, candidates, known)
    order = np.argsort(-gain, kind="stable")[:n]
    return candidates[order[gain[order] > 0]]


def expected_improvement(
    posterior: Posterior,
    problem: Problem,
    limits: Limits,
    candidates: Int[np.ndarray, "candidate layer"],
    known: Joint,
) -> Float[np.ndarray, "candidate"]:
    """Σ over budgets, mean over draws of E[max(best − y, 0)] = (best − m) Φ(z) + sd φ(z), z = (best − m) / sd."""
    best = np.where(within(problem, known.allocations, limits), known.losses, np.inf).min(axis=1)
    best = np.where(np.isfinite(best), best, known.losses[np.isfinite(known.losses)].max())  # none within the budget
    mean, sd = posterior.predict(candidates)
    sd = np.maximum(sd, 1e-12 * np.abs(mean) + 1e-300)
    total = np.zeros(len(candidates))
    for value, met in zip(best, within(problem, candidates, limits)):
        z = (value - mean) / sd
        density = np.exp(-0.5 * np.minimum(z**2, 1e3)) / np.sqrt(2 * np.pi)
        total += met * (sd * (z * ndtr(z) + density)).mean(axis=0)
    return total


def _new(candidates: np.ndarray, known: Joint) -> Int[np.ndarray, "candidate layer"]:
    """Each once, in their order, without what is measured."""
    measured = {row.tobytes() for row in known.allocations.astype(np.int64)}
    rows = {row.tobytes(): row for row in candidates.astype(np.int64)}
    found = [row for name, row in rows.items() if name not in measured]
    return np.stack(found) if found else np.zeros((0, candidates.shape[1]), np.int64)


def _changed(problem: Problem, allocation: Int[np.ndarray, "layer"]) -> Int[np.ndarray, "candidate layer"]:
    """The allocation with another allowed option in one layer, or in all layers tied to it."""
    tied = {layer: group for group in problem.groups for layer in group}
    found = [allocation]
    for layer in range(len(allocation)):
        together = list(tied.get(layer, (layer,)))
        for option in np.flatnonzero(problem.allowed[together].all(axis=0)):
            changed = allocation.copy()
            changed[together] = option
            found.append(changed)
    return np.stack(found)
