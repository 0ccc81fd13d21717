"""What the sensitivity posterior says about allocations: probabilities of bits, of being optimal, bands and regret."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.allocation.bayes.posterior import Posterior
from qresearch.allocation.bayes.vectorized import Optima, optima
from qresearch.allocation.budgets import Limits, check_budgets
from qresearch.allocation.exact import optimum
from qresearch.allocation.problem import Problem, merge_groups

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # the 50 % and 90 % bands and the median


class Decision(NamedTuple):
    """allocations: of least posterior mean loss, what to choose. probabilities: P(bits), the share of draws whose
    optimum gives the layer this option. optimal: P(the chosen allocation is the optimum). loss: quantiles of the chosen
    allocation's measured loss, interaction included. front: quantiles of the least summed loss within the budget.
    regret: by how much, in expectation, the chosen allocation's summed loss exceeds the least one. Losses are in
    units of the measurements.
    """

    allocations: Int[np.ndarray, "budget layer"]
    probabilities: Float[np.ndarray, "budget layer option"]
    optimal: Float[np.ndarray, "budget"]
    loss: Float[np.ndarray, "quantile budget"]
    front: Float[np.ndarray, "quantile budget"]
    regret: Float[np.ndarray, "budget"]


def decide(
    seed: int | np.random.Generator,
    posterior: Posterior,
    problem: Problem,
    budgets: ArrayLike,
    quantiles: tuple[float, ...] = QUANTILES,
) -> Decision:
    """The decision within each budget. Of the problem, only costs, groups and what is allowed are used.

    The expected loss of an allocation is the sum of expected sensitivities, so the exact allocator on the posterior
    mean finds the allocation of least expected loss. It need not be the one that is most often optimal, nor have
    every layer's most probable option, which together may break the budget. seed: of the interaction in ``loss``.
    BudgetError for a budget that no allocation meets.
    """
    limits, random = check_budgets(problem, budgets), np.random.default_rng(seed)
    loss = posterior.sensitivity
    allocations = best_expected(loss, problem, limits)
    found = draw_optima(loss, problem, limits)
    same = np.all(found.allocations == allocations, axis=-1)
    layers, options = problem.loss.shape
    chosen = loss[:, np.arange(layers), allocations].sum(axis=-1)
    interaction = posterior.spread(chosen) * random.normal(size=chosen.shape)
    return Decision(
        allocations,
        np.stack([(found.allocations == option).mean(axis=0) for option in range(options)], axis=-1),
        same.mean(axis=0),
        np.quantile(posterior.base[:, None] + chosen + interaction, quantiles, axis=0),
        np.quantile(posterior.base[:, None] + found.loss, quantiles, axis=0),
        np.maximum(chosen - found.loss, 0.0).mean(axis=0),
    )


def best_expected(
    loss: Float[np.ndarray, "draw layer option"], problem: Problem, limits: Limits
) -> Int[np.ndarray, "budget layer"]:
    """The allocations of least mean loss within the limits."""
    mean = replace(problem, loss=np.where(problem.allowed, loss.mean(axis=0), np.inf), measure=None)
    merged, index = merge_groups(mean)
    return np.stack([optimum(merged, limit) for limit in limits])[:, index]


def draw_optima(loss: Float[np.ndarray, "draw layer option"], problem: Problem, limits: Limits) -> Optima:
    """The optimum of every draw within every limit, with tied layers together."""
    merged, index = merge_groups(problem)
    together = np.zeros((len(loss), *merged.loss.shape))
    for layer, group in enumerate(index):
        together[:, group] += np.where(problem.allowed[layer], loss[:, layer], np.inf)
    found = optima(together, merged, limits)
    return found._replace(allocations=found.allocations[..., index])
