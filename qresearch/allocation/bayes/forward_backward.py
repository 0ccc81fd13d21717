"""The Gibbs posterior over allocations, exactly: forward filtering and backward sampling over reachable costs.

    p(b) ∝ exp(−Σ_l loss[l, b_l] / T) · 1{Σ_l costs[c, l, b_l] ≤ limits[c] for every c}

is a chain over layers whose state is the cost so far. Forwards, the weight of every reachable cost is the sum over its
predecessors; backwards, a path is drawn from the conditional probabilities of predecessors (Scott, Bayesian Methods for
Hidden Markov Models, https://doi.org/10.1198/016214502753479464, 2002; for knapsacks Dyer, Approximate Counting by
Dynamic Programming, https://doi.org/10.1145/780542.780643, 2003, whose rounding and rejection this uses).

Exactness. Where no layer has more than ``max_states`` reachable costs, they are the states, and marginals and draws are
both exact. Where there are more, costs are counted in units, rounded down: that admits every allocation within the
budget and a few above it, which are rejected by their true cost. Draws are exact still; marginals are then refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from qresearch.allocation.budgets import within
from qresearch.allocation.problem import Problem
from qresearch.errors import BudgetError, ConfigError

MAX_STATES = 2**15
_TRIES = 200  # batches of draws before rejection is given up


class Transitions(NamedTuple):
    """The steps into one layer's states, sorted by the state they reach. ``probability``: of the step, given that."""

    parent: Int[np.ndarray, "step"]
    option: Int[np.ndarray, "step"]
    child: Int[np.ndarray, "step"]
    probability: Float[np.ndarray, "step"]


class Chain(NamedTuple):
    """``last``: the probability of every cost after the last layer. ``log_partition``: of Σ_b exp(−loss(b)/T).

    exact: the states are the costs themselves, so that nothing needs to be rejected.
    """

    layers: tuple[Transitions, ...]
    last: Float[np.ndarray, "state"]
    log_partition: float
    exact: bool


class _TooManyStatesError(Exception):
    """More states than asked for."""


def forward_filter(
    problem: Problem, limit: Num[np.ndarray, "constraint"], temperature: float, max_states: int = MAX_STATES
) -> Chain:
    """The chain of the Gibbs posterior. The problem's groups must be merged; ``limit``: see ``check_budgets``.

    temperature: in units of the loss, > 0.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"the temperature of a Gibbs posterior must be a number > 0, got {temperature}")
    try:
        return _filter(problem, problem.costs, limit, temperature, max_states, True)
    except _TooManyStatesError:
        units = _units(problem, limit, max_states)
        costs = np.floor(problem.costs / units[:, None, None]).astype(np.int64)
        return _filter(problem, costs, np.floor(limit / units).astype(np.int64), temperature, np.inf, False)


def _units(problem: Problem, limit: np.ndarray, max_states: int) -> Float[np.ndarray, "constraint"]:
    """Units in which the grid of all costs has at most ``max_states`` points."""
    bins = max(int(max_states ** (1.0 / len(limit))), 2)
    return np.maximum(limit.astype(np.float64), 1e-300) / (bins - 1)


def _filter(
    problem: Problem, costs: np.ndarray, limit: np.ndarray, temperature: float, max_states: float, exact: bool
) -> Chain:
    allowed = problem.allowed
    log_weight = -(problem.loss - problem.loss.min(axis=1, keepdims=True)) / temperature
    least = np.where(allowed, costs, costs.max()).min(axis=2)
    rest = least.sum(axis=1)[:, None] - np.cumsum(least, axis=1)
    total, log_alpha, layers = np.zeros((1, len(costs)), costs.dtype), np.zeros(1), []
    for layer in range(len(problem.loss)):
        options = np.flatnonzero(allowed[layer])
        step_total = (total[:, None] + costs[:, layer, options].T[None]).reshape(-1, len(costs))
        step_weight = (log_alpha[:, None] + log_weight[layer, options]).ravel()
        kept = np.flatnonzero(np.all(step_total <= limit - rest[:, layer], axis=1))
        if not kept.size:
            raise BudgetError("no allocation meets the budget; see check_budgets")
        total, child = _distinct(step_total[kept])
        if len(total) > max_states:
            raise _TooManyStatesError
        parent, option = np.divmod(kept, len(options))
        order = np.argsort(child, kind="stable")
        child, weights = child[order], step_weight[kept][order]
        log_alpha = _log_sum_exp(weights, child)
        probability = np.exp(weights - log_alpha[child])
        layers.append(Transitions(parent[order], options[option[order]], child, probability))
    log_partition = float(np.logaddexp.reduce(log_alpha))
    shift = float(problem.loss.min(axis=1).sum()) / temperature
    return Chain(tuple(layers), np.exp(log_alpha - log_partition), log_partition - shift, exact)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if rows.shape[1] == 1:  # many times faster than the general case
        values, inverse = np.unique(rows[:, 0], return_inverse=True)
        return values[:, None], inverse
    values, inverse = np.unique(rows, axis=0, return_inverse=True)
    return values, inverse.reshape(-1)


def _log_sum_exp(values: np.ndarray, group: np.ndarray) -> Float[np.ndarray, "group"]:
    """Per group; values are sorted by group."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    greatest = np.maximum.reduceat(values, first)
    return greatest + np.log(np.add.reduceat(np.exp(values - greatest[group]), first))


def marginals(chain: Chain, options: int) -> Float[np.ndarray, "layer option"]:
    """P(b_l = o) of an exact chain."""
    if not chain.exact:
        raise ConfigError("marginals of this many costs are not exact: draw with backward_sample and count")
    state, found = chain.last, np.zeros((len(chain.layers), options))
    for layer in range(len(chain.layers) - 1, -1, -1):
        step = chain.layers[layer]
        joint = state[step.child] * step.probability
        found[layer] = np.bincount(step.option, joint, options)
        state = np.bincount(step.parent, joint)
    return found


def backward_sample(
    random: np.random.Generator, chain: Chain, problem: Problem, limit: Num[np.ndarray, "constraint"], count: int
) -> Int[np.ndarray, "count layer"]:
    """Independent draws of the posterior; what the rounding of costs let through is rejected by its true cost."""
    found, kept = [], 0
    for _ in range(_TRIES):
        draws = _paths(random, chain, count)
        draws = draws if chain.exact else draws[within(problem, draws, limit[None])[0]]
        found.append(draws)
        kept += len(draws)
        if kept >= count:
            return np.concatenate(found)[:count]
    raise ConfigError(
        f"{kept} of {_TRIES * count} draws of the Gibbs posterior were within the budget: give more max_states (costs"
        " are then rounded less), or a larger budget"
    )


def _paths(random: np.random.Generator, chain: Chain, count: int) -> Int[np.ndarray, "count layer"]:
    state = random.choice(len(chain.last), count, p=chain.last / chain.last.sum())
    paths = np.zeros((count, len(chain.layers)), np.int64)
    for layer in range(len(chain.layers) - 1, -1, -1):
        step = chain.layers[layer]
        # The conditional probabilities of every state add up to 1, so that one running sum serves all states.
        ends = np.cumsum(np.bincount(step.child))
        running = np.cumsum(step.probability)
        before = np.concatenate([[0.0], running[ends - 1]])[state]
        picked = np.searchsorted(running, before + random.random(count), side="right")
        picked = np.clip(picked, np.concatenate([[0], ends])[state], ends[state] - 1)
        paths[:, layer], state = step.option[picked], step.parent[picked]
    return paths


def temperature_of(predicted: Float[np.ndarray, "allocation"], measured: Float[np.ndarray, "allocation"]) -> float:
    """The temperature at which the Gibbs posterior is the probability of being best: √6/π · sd(measured − predicted).

    predicted: summed losses of random joint allocations; measured: their losses on validation data, which may be offset
    (by the float model's loss). If the differences are independent Gumbel variables of scale T, the allocation of least
    measured loss is b with probability ∝ exp(−predicted(b)/T) (Luce's choice rule; McFadden, Conditional Logit Analysis
    of Qualitative Choice Behavior, 1974), and their standard deviation is Tπ/√6.
    Where we differ: real differences are neither independent nor Gumbel; the scale alone is taken from them.
    """
    difference = np.asarray(measured, np.float64) - np.asarray(predicted, np.float64)
    if len(difference) < 3 or not np.isfinite(difference).all():
        raise ConfigError(
            f"a temperature needs at least 3 finite measured losses, got {np.isfinite(difference).sum()} of"
            f" {len(difference)}: measure more joint allocations"
        )
    return float(np.sqrt(6.0) / np.pi * difference.std(ddof=1))
