"""Draws of the Gibbs posterior: allocations that are nearly best on the table, of which the best measured one wins."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.allocation import exact
from qresearch.allocation.bayes.forward_backward import backward_sample, forward_filter, temperature_of
from qresearch.allocation.budgets import Limits, check_budgets, within
from qresearch.allocation.problem import Key, Problem, draw_options, generator, merge_groups
from qresearch.errors import ConfigError


def allocate(
    key: Key, problem: Problem, budgets: ArrayLike, draws: int = 32, joint: int = 16, temperature: float = 0.0
) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The allocation of least measured loss among the mode and ``draws`` draws of p(b) ∝ exp(−loss(b)/T) per budget.

    The mode is the exact allocator's answer, and the answer where the problem cannot measure. T is ``temperature``, in
    units of the loss; 0 takes it from the measured losses of ``joint`` random allocations (``temperature_of``). Draws
    are exact, see ``bayes.forward_backward``. ``info``: ``temperature``; ``marginals`` [budget][layer][option], the
    shares of options among the draws; ``evaluations``, how many allocations were measured.
    Catoni, PAC-Bayesian Supervised Classification, https://arxiv.org/abs/0712.0248, 2007, on Gibbs posteriors.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    modes, _ = exact.allocate(key, problem, budgets)
    merged, index = merge_groups(problem)
    _, leaders = np.unique(index, return_index=True)
    random, archive = generator(key), _Archive(problem)
    if problem.measure is not None:
        asked = draw_options(random, merged.allowed, joint)
        losses = archive.losses(asked[:, index]) if temperature == 0.0 else np.zeros(0)
        temperature = temperature if temperature > 0 else temperature_of(merged.total_loss(asked), losses)
    if temperature == 0.0:  # all probability is at the mode
        info = {"temperature": 0.0, "marginals": [], "evaluations": 0, "seconds": time.perf_counter() - start}
        return modes, info
    drawn = _draws(random, merged, limits, temperature, draws)
    found = modes
    if problem.measure is not None:
        tried = np.unique(np.concatenate([modes[:, leaders], drawn.reshape(-1, len(leaders))]), axis=0)
        losses = archive.losses(tried[:, index])
        found = tried[np.where(within(merged, tried, limits), losses, np.inf).argmin(axis=1)][:, index]
    info = {
        "stochastic": True,
        "temperature": float(temperature),
        "marginals": _shares(drawn, problem.loss.shape[1])[:, index].tolist(),
        "evaluations": archive.measured,
        "seconds": time.perf_counter() - start,
    }
    return found, info


def _draws(
    random: np.random.Generator, merged: Problem, limits: Limits, temperature: float, count: int
) -> Int[np.ndarray, "budget draw layer"]:
    chains = [forward_filter(merged, limit, temperature) for limit in limits]
    return np.stack([backward_sample(random, chain, merged, limit, count) for chain, limit in zip(chains, limits)])


def _shares(drawn: Int[np.ndarray, "budget draw layer"], options: int) -> Float[np.ndarray, "budget layer option"]:
    return np.stack([(drawn == option).mean(axis=1) for option in range(options)], axis=-1)


class _Archive:
    """Asks the problem for losses, and counts."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.measured = problem, 0

    def losses(self, allocations: Int[np.ndarray, "candidate layer"]) -> Float[np.ndarray, "candidate"]:
        assert self.problem.measure is not None
        self.measured += len(allocations)
        losses = np.asarray(self.problem.measure(allocations), np.float64)
        if np.isnan(losses).any():
            raise ConfigError(
                f"{np.isnan(losses).sum()} of {len(losses)} measured losses are NaN; check the calibration"
            )
        return losses
