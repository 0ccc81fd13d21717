"""The best allocation of every draw of losses, for all budgets at once: a dynamic programme over one grid of costs.

    value[l, c] = min_o (value[l − 1, c − costs[l, o]] + loss[l, o]),     value[0, c] = 0 for c ≥ 0

is the least loss of the first l layers with cost at most c. Costs are the same for all draws, so draws are one more
array axis (Kellerer, Pferschy and Pisinger, Knapsack Problems, https://doi.org/10.1007/978-3-540-24777-7, 2004).

Exactness. Costs are counted above every layer's cheapest option, in units of their greatest common divisor; where the
largest budget then has at most ``max_bins`` units, the answer is the optimum (in float32 arithmetic: within 1e-6 of its
loss). Otherwise units are larger, and two programmes are solved. Rounded down, costs admit every allocation within the
budget: their optimum is the answer wherever it is within the budget, and a lower bound elsewhere. Rounded up, they
admit nothing above it: the answer where it reaches that bound, and the upper bound from which the exact allocator's
``solve`` starts for the draws that are left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qresearch.allocation.budgets import Limits, within
from qresearch.allocation.dynamic_program import solve
from qresearch.allocation.exact import optimum
from qresearch.allocation.problem import Problem

MAX_BINS = 2**16
_ROUNDING = 1e-6  # of float32 losses: equal ones may differ by as much
_CHUNK_CELLS = 2**23  # cells of the table of choices held at once, a byte each


class Optima(NamedTuple):
    """The best allocations, their summed losses, and how many of them the grid left to the exact allocator."""

    allocations: Int[np.ndarray, "draw budget layer"]
    loss: Float[np.ndarray, "draw budget"]
    left: int


class _Grid(NamedTuple):
    costs: Int[np.ndarray, "layer option"]
    limits: Int[np.ndarray, "budget"]


def optima(
    loss: Float[np.ndarray, "draw layer option"], problem: Problem, limits: Limits, max_bins: int = MAX_BINS
) -> Optima:
    """The best allocation within each limit under each draw of the losses. The problem's groups must be merged.

    limits: see ``check_budgets``. With several constraints, every draw goes to the exact allocator, which takes
    milliseconds each instead of microseconds.
    """
    if len(problem.costs) > 1:
        return _one_by_one(loss, problem, limits)
    fine, unit = _units(problem, limits, max_bins)
    if unit == 1:
        found = _solve(loss, fine)
        return Optima(found, total(loss, found), 0)
    low = _Grid(np.floor(fine.costs / unit).astype(np.int64), np.floor(fine.limits / unit).astype(np.int64))
    # Sums of float costs round: one unit less keeps them within.
    spare = int(problem.costs.dtype.kind == "f")
    high = _Grid(np.ceil(fine.costs / unit).astype(np.int64), np.maximum(low.limits - spare, 0))
    below, found = _solve(loss, low), _solve(loss, high)
    met = np.stack([within(problem, below[:, b], limits[b, None])[0] for b in range(len(limits))], axis=1)
    found = np.where(met[:, :, None], below, found)
    losses = total(loss, found)
    left = np.argwhere(losses > total(loss, below) * (1 + _ROUNDING))
    for d, b in left:
        allocation = solve(loss[d], problem.costs, limits[b], losses[d, b]).allocation
        found[d, b] = found[d, b] if allocation is None else allocation
    return Optima(found, total(loss, found), len(left))


def total(loss: Float[np.ndarray, "draw layer option"], allocations: np.ndarray) -> Float[np.ndarray, "draw budget"]:
    """The summed losses of allocations [draw, budget, layer], each under its own draw."""
    return np.take_along_axis(loss, allocations.transpose(0, 2, 1), axis=2).sum(axis=1)


def _units(problem: Problem, limits: Limits, max_bins: int) -> tuple[_Grid, float]:
    """(costs above every layer's cheapest option, how many of their units make a bin: 1 if nothing is rounded)."""
    costs, allowed = problem.costs[0], problem.allowed
    least = np.where(allowed, costs, costs.max()).min(axis=1)
    above = np.where(allowed, costs - least[:, None], 0)
    room = np.clip(limits[:, 0] - least.sum(), 0, above.max(axis=1).sum())
    if costs.dtype.kind != "f":
        divisor = max(int(np.gcd.reduce(above.ravel())), 1)
        above, room = above // divisor, room // divisor
        if room.max() < max_bins:
            return _Grid(above, room), 1
    return _Grid(above, room), max(float(room.max()) / (max_bins - 1), 1e-300)


def _solve(loss: np.ndarray, grid: _Grid) -> Int[np.ndarray, "draw budget layer"]:
    draws, layers, _ = loss.shape
    bins = 1 << int(grid.limits.max()).bit_length()  # powers of two: few shapes, few compilations
    chunk = int(np.clip(_CHUNK_CELLS // (bins * layers), 1, draws))
    above = loss - loss.min(axis=2, keepdims=True)
    size = np.where(np.isfinite(above), above, 0.0).max(axis=(1, 2), keepdims=True)
    scaled = np.asarray(above / np.where(size > 0, size, 1.0), np.float32)
    padded = np.concatenate([scaled, np.repeat(scaled[:1], -draws % chunk, axis=0)]).reshape(-1, chunk, *loss.shape[1:])
    costs = np.minimum(grid.costs, bins).astype(np.int32)
    found = _program(bins)(jnp.asarray(padded), jnp.asarray(costs), jnp.asarray(grid.limits.astype(np.int32)))
    return np.asarray(found, np.int64).reshape(-1, len(grid.limits), layers)[:draws]


@functools.lru_cache(maxsize=32)
def _program(bins: int) -> Callable[[Array, Array, Array], Array]:
    """(loss [chunk, draw, layer, option], costs, limits) -> allocations [chunk, draw, budget, layer]."""

    def chunk(loss: Array, costs: Array, limits: Array) -> Array:
        draws, _, options = loss.shape
        outside = jnp.full((draws, bins), jnp.inf)

        def forward(value: Array, layer: tuple[Array, Array]) -> tuple[Array, Array]:
            layer_loss, layer_costs = layer
            reachable = jnp.concatenate([outside, value], axis=1)
            best, choice = None, jnp.zeros((draws, bins), jnp.uint8)
            for option in range(options):
                shifted = jax.lax.dynamic_slice_in_dim(reachable, bins - layer_costs[option], bins, axis=1)
                candidate = shifted + layer_loss[:, option, None]
                if best is None:
                    best = candidate
                else:
                    choice = jnp.where(candidate < best, jnp.uint8(option), choice)
                    best = jnp.minimum(best, candidate)
            assert best is not None
            return best, choice

        def backward(left: Array, layer: tuple[Array, Array]) -> tuple[Array, Array]:
            choice, layer_costs = layer
            option = jnp.take_along_axis(choice, left, axis=1).astype(jnp.int32)
            return left - layer_costs[option], option

        _, choices = jax.lax.scan(forward, jnp.zeros((draws, bins)), (loss.swapaxes(0, 1), costs))
        start = jnp.broadcast_to(limits, (draws, len(limits)))
        _, found = jax.lax.scan(backward, start, (choices, costs), reverse=True)
        return found.transpose(1, 2, 0)

    return jax.jit(lambda loss, costs, limits: jax.lax.map(lambda part: chunk(part, costs, limits), loss))


def _one_by_one(loss: np.ndarray, problem: Problem, limits: Limits) -> Optima:
    found = np.zeros((len(loss), len(limits), len(problem.loss)), np.int64)
    for d, b in np.ndindex(found.shape[:2]):
        found[d, b] = optimum(replace(problem, loss=loss[d]), limits[b])
    return Optima(found, total(loss, found), found.shape[0] * found.shape[1])
