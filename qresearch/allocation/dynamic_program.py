"""The exact search: dynamic programming over layers, pruned by Lagrangian bounds. Plain arrays in, one optimum out.

    minimise Σ_l loss[l, o_l]   subject to   Σ_l costs[c, l, o_l] ≤ limits[c]   for every constraint c

is a multiple-choice knapsack. Partial allocations of the first layers are kept only while (1) no other partial
allocation is at least as good in its loss and in every cost, (2) the cheapest rest still meets every limit, and (3) for
every multiplier vector λ ≥ 0 tried, a lower bound of all its completions does not exceed the best complete allocation:

    loss + λ·cost + Σ_rest min_o (loss[l, o] + λ·costs[:, l, o]) − λ·limits ≤ upper

Any λ ≥ 0 gives a valid bound, so the answer stays exact however λ was found; the dual solution of the linear relaxation
gives the tightest. The same minimisers complete every partial allocation, and so find the ``upper`` that prunes.

Kellerer, Pferschy and Pisinger, Knapsack Problems, https://doi.org/10.1007/978-3-540-24777-7, 2004, chapter 11;
Pisinger, https://doi.org/10.1016/0377-2217(95)00015-I, 1995. They grow a core around the relaxed solution, for one
constraint; here any number is handled alike, and layers come by decreasing spread of cost: what is still open at the
end is then fine-grained, so that completions are good (fewer states than any other order tried, often by a factor 10).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from qresearch.allocation.dominance import nondominated
from qresearch.errors import ConfigError

MAX_STATES = 2**24  # partial allocations held at once: about 1 GB
# Bounds and losses are sums of up to thousands of terms: this relative slack is above their rounding error, so that
# rounding never prunes an optimum, and far below any difference that matters.
_SLACK = 1e-12
# Multiples of the relaxation's multipliers. It prices all layers together; those that are left have other prices.
_FACTORS = (1.0, 0.97, 1.03, 0.9, 1.1, 0.8, 1.25, 0.6, 1.6, 0.4, 2.5, 0.15, 6.0, 0.0)

Costs = Num[np.ndarray, "constraint layer option"]


class Solution(NamedTuple):
    """``allocation``: int[layer], or None where none meets the limits. ``states``: partial allocations looked at."""

    allocation: Int[np.ndarray, "layer"] | None
    states: int


class _Tables(NamedTuple):
    loss: Float[np.ndarray, "layer option"]  # the least of every layer is 0
    costs: Costs
    allowed: Bool[np.ndarray, "layer option"]
    limits: Num[np.ndarray, "constraint"]


class _Rest(NamedTuple):
    """Sums over layers k, k+1, ... (last axis: k). ``value``, ``loss``, ``cost``: of the minimisers of each λ."""

    value: Float[np.ndarray, "multiplier from_layer"]
    loss: Float[np.ndarray, "multiplier from_layer"]
    cost: Num[np.ndarray, "constraint multiplier from_layer"]
    least_cost: Num[np.ndarray, "constraint from_layer"]


class _States(NamedTuple):
    cost: Num[np.ndarray, "constraint state"]
    loss: Float[np.ndarray, "state"]
    parent: Int[np.ndarray, "state"]
    option: Int[np.ndarray, "state"]

    def take(self, which: np.ndarray) -> _States:
        return _States(self.cost[:, which], self.loss[which], self.parent[which], self.option[which])


def solve(
    loss: Float[np.ndarray, "layer option"],
    costs: Costs,
    limits: Num[np.ndarray, "constraint"],
    upper: float = np.inf,
) -> Solution:
    """The allocation of least loss whose costs are within ``limits``. Of equal losses the cheapest, constraint by
    constraint; of equal costs too, one that depends only on the order of the layers and the options.

    loss: +inf where an option is not allowed. costs: non-negative; compared with ``limits`` as they are, so a tolerance
    belongs into the limits. upper: the loss of any allocation within the limits, if one is known.
    """
    if not np.isfinite(loss).any(axis=1).all():
        return Solution(None, 0)
    least = loss.min(axis=1)
    upper = upper - least.sum() + _SLACK * (abs(upper) + np.abs(least).sum())
    tables = _affordable(_Tables(loss - least[:, None], costs, np.isfinite(loss), limits), upper)
    if not tables.allowed.any(axis=1).all():
        return Solution(None, 0)
    multipliers = _multipliers(tables)
    tables, upper = _fix(tables, multipliers, upper)
    order = np.argsort(-_spread(tables), kind="stable")
    ordered = tables._replace(loss=tables.loss[order], costs=costs[:, order], allowed=tables.allowed[order])
    choices, states = _search(ordered, multipliers, upper)
    return Solution(None if choices is None else choices[np.argsort(order)], states)


def _affordable(tables: _Tables, upper: float) -> _Tables:
    """Without the options that no allocation below ``upper`` and within the limits can contain."""
    least = _least_cost(tables)
    rest = least.sum(axis=1)[:, None] - least
    within = tables.costs + rest[:, :, None] <= tables.limits[:, None, None]
    return tables._replace(allowed=tables.allowed & within.all(axis=0) & (tables.loss <= upper))


def _least_cost(tables: _Tables) -> Num[np.ndarray, "constraint layer"]:
    return np.where(tables.allowed, tables.costs, tables.costs.max()).min(axis=2)


def _spread(tables: _Tables) -> Float[np.ndarray, "layer"]:
    """How much of the limits a layer's options can move."""
    greatest = np.where(tables.allowed, tables.costs, 0).max(axis=2)
    return ((greatest - _least_cost(tables)) / _scale(tables)[:, None]).sum(axis=0)


def _scale(tables: _Tables) -> Float[np.ndarray, "constraint"]:
    return np.where(tables.limits > 0, tables.limits, 1).astype(np.float64)


def _multipliers(tables: _Tables) -> Float[np.ndarray, "multiplier constraint"]:
    """The relaxation's prices of the constraints, first as they are, then together and one by one scaled."""
    best = relaxed_prices(np.where(tables.allowed, tables.loss, np.inf), tables.costs, tables.limits)
    scaled = [best * factor for factor in _FACTORS]
    if len(best) > 1:
        for c in range(len(best)):
            scaled += [np.where(np.arange(len(best)) == c, best * factor, best) for factor in (0.7, 0.9, 1.1, 1.5)]
    return np.stack(scaled)


def relaxed_prices(
    loss: Float[np.ndarray, "layer option"], costs: Costs, limits: Num[np.ndarray, "constraint"]
) -> Float[np.ndarray, "constraint"]:
    """The dual prices of the constraints in the linear relaxation, where a layer may mix its options.

    loss: +inf where an option is not allowed. Ones where the relaxation cannot be met.
    """
    from scipy.optimize import linprog  # costs 0.2 s, which the command line would pay for every start
    from scipy.sparse import csr_array

    allowed = np.isfinite(loss)
    layer, _ = np.nonzero(allowed)
    above = loss - loss.min(axis=1, keepdims=True)
    loss_scale = above[allowed].max()
    scale = np.where(limits > 0, limits, 1).astype(np.float64)
    if loss_scale == 0.0:
        return np.zeros(len(limits))
    one_option = csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))))
    result = linprog(
        above[allowed] / loss_scale,
        A_ub=costs[:, allowed] / scale[:, None],
        b_ub=limits / scale,
        A_eq=one_option,
        b_eq=np.ones(len(loss)),
    )
    prices = -result.ineqlin.marginals if result.status == 0 else np.ones(len(scale))
    return np.maximum(prices, 0.0) * loss_scale / scale


def _values(tables: _Tables, multipliers: np.ndarray) -> Float[np.ndarray, "multiplier layer option"]:
    """loss + λ·costs, +inf where not allowed."""
    values = tables.loss + np.tensordot(multipliers, tables.costs.astype(np.float64), axes=1)
    return np.where(tables.allowed, values, np.inf)


def _fix(tables: _Tables, multipliers: np.ndarray, upper: float) -> tuple[_Tables, float]:
    """Without the options whose bound is above ``upper``, which the minimisers of every λ may lower first."""
    values = _values(tables, multipliers)
    layers, least = np.arange(len(tables.loss)), values.min(axis=2)
    choice = values.argmin(axis=2)
    within = (tables.costs[:, layers, choice].sum(axis=2) <= tables.limits[:, None]).all(axis=0)
    upper = np.where(within, tables.loss[layers, choice].sum(axis=1), upper).min(initial=upper)
    slack = _room(multipliers, tables.limits, upper)[:, None, None]
    bound = least.sum(axis=1)[:, None, None] + values - least[:, :, None]
    return tables._replace(allowed=tables.allowed & (bound <= slack).all(axis=0)), float(upper)


def _room(multipliers: np.ndarray, limits: np.ndarray, upper: float) -> Float[np.ndarray, "multiplier"]:
    """upper + λ·limits, the most that loss + λ·cost of an allocation worth keeping can be."""
    return (upper + multipliers @ limits) * (1.0 + _SLACK)


def _rest(tables: _Tables, multipliers: np.ndarray) -> _Rest:
    values = _values(tables, multipliers)
    layers, choice = np.arange(len(tables.loss)), values.argmin(axis=2)
    return _Rest(
        _sums_from(values.min(axis=2)),
        _sums_from(tables.loss[layers, choice]),
        _sums_from(tables.costs[:, layers, choice]),
        _sums_from(_least_cost(tables)),
    )


def _sums_from(per_layer: np.ndarray) -> np.ndarray:
    """[..., layer] -> [..., layer + 1]: entry k sums layers k, k+1, ...; the last entry is 0."""
    sums = np.cumsum(per_layer[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros_like(sums[..., :1])], axis=-1)


def _search(tables: _Tables, multipliers: np.ndarray, upper: float) -> tuple[Int[np.ndarray, "layer"] | None, int]:
    """The best option of every layer, and the number of partial allocations looked at."""
    rest = _rest(tables, multipliers)
    constraints = len(tables.limits)
    states = _States(np.zeros((constraints, 1), tables.costs.dtype), np.zeros(1), np.zeros(1, int), np.zeros(1, int))
    trail, looked_at = [], 0
    for layer in range(len(tables.loss)):
        looked_at += states.loss.size * int(tables.allowed[layer].sum())
        states = _extend(tables, multipliers, rest, upper, states, layer)
        if states.loss.size > 1:
            states = states.take(nondominated(states.cost, states.loss))
            upper = min(upper, _best_completion(tables, rest, states, layer + 1))
            bound = states.loss[:, None] + states.cost.T @ multipliers.T + rest.value[:, layer + 1]
            states = states.take((bound <= _room(multipliers, tables.limits, upper)).all(axis=1))
        if not states.loss.size:
            return None, looked_at
        trail.append((states.parent.astype(np.int32), states.option.astype(np.int32)))
    best = np.lexsort((*states.cost[::-1], states.loss))[0]
    return _follow(trail, int(best)), looked_at


def _extend(
    tables: _Tables, multipliers: np.ndarray, rest: _Rest, upper: float, states: _States, layer: int
) -> _States:
    """Every state with every option of ``layer`` that the limits and the tightest bound leave."""
    room = _room(multipliers[:1], tables.limits, upper)[0] - rest.value[0, layer + 1]
    limits = tables.limits - rest.least_cost[:, layer + 1]
    parts = []
    for option in np.flatnonzero(tables.allowed[layer]):
        cost = states.cost + tables.costs[:, layer, option, None]
        loss = states.loss + tables.loss[layer, option]
        kept = np.flatnonzero((cost <= limits[:, None]).all(axis=0) & (loss + multipliers[0] @ cost <= room))
        parts.append(_States(cost[:, kept], loss[kept], kept, np.full(len(kept), option)))
    if sum(part.loss.size for part in parts) > MAX_STATES:
        raise ConfigError(
            f"the exact search holds more than {MAX_STATES} partial allocations at layer {layer + 1} of"
            f" {len(tables.loss)}: round the costs to a coarser unit, or use another allocator"
        )
    return _States(*(np.concatenate(field, axis=-1) for field in zip(*parts)))


def _best_completion(tables: _Tables, rest: _Rest, states: _States, layer: int) -> float:
    """The least loss of the complete allocations that the minimisers of every λ make of the states."""
    best = np.inf
    for m in range(len(rest.loss)):
        within = (states.cost + rest.cost[:, m, layer, None] <= tables.limits[:, None]).all(axis=0)
        best = min(best, np.min(states.loss[within], initial=np.inf) + rest.loss[m, layer])
    return float(best)


def _follow(trail: list[tuple[np.ndarray, np.ndarray]], state: int) -> Int[np.ndarray, "layer"]:
    options = np.zeros(len(trail), int)
    for layer in range(len(trail) - 1, -1, -1):
        parent, option = trail[layer]
        options[layer], state = option[state], int(parent[state])
    return options
