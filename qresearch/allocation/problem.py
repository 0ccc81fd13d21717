"""The allocation problem: pick one option per layer so that the summed loss is least and every cost within budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import ArrayLike

from qresearch.errors import ConfigError

MAX_TOTAL = 2**53  # integers above this are not exact as float64, and budgets often arrive as floats

Allocations = Int[np.ndarray, "... layer"]
Key = Any  # an int seed or a JAX PRNG key, whose type would import jax here


Measure = Callable[[Int[np.ndarray, "n layer"]], Float[np.ndarray, "n"]]


class Allocator(Protocol):
    """``allocate(key, problem, budgets) -> (allocations, info)``: an allocation within every budget, low in loss.

    key: an int seed or a JAX PRNG key; the answer depends on nothing else that is not an argument. budgets:
    [budget, constraint], or [budget] for one constraint. allocations: int[budget, layer], indices of options.
    info: plain diagnostics for records. Two entries declare what the conformance tests may ask for: ``family``, the
    name of what is searched where that is less than all allocations, and ``stochastic``, True if the key matters.
    Raises ``BudgetError`` where no allocation meets a budget.
    """

    def __call__(
        self, key: Key, problem: Problem, budgets: ArrayLike
    ) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]: ...


@dataclass(frozen=True, eq=False)
class Problem:
    """What allocators know: the loss and the costs of every option in every layer. Losses and costs add up over layers.

    loss: [layer, option]; +inf where the layer may not take the option. costs: [constraint, layer, option],
    non-negative, integer wherever possible (``qresearch.cost``). groups: layers (by index) that must take the same
    option. The names serve messages only. measure: the loss of whole allocations int[n, layer] -> [n], joint effects
    included, for allocators that ask for it; float_loss: what it gives with nothing quantized, NaN if not known.
    """

    loss: Float[np.ndarray, "layer option"]
    costs: Num[np.ndarray, "constraint layer option"]
    groups: tuple[tuple[int, ...], ...] = ()
    layer_names: tuple[str, ...] = ()
    option_names: tuple[str, ...] = ()
    constraint_names: tuple[str, ...] = ()
    measure: Measure | None = None
    float_loss: float = float("nan")

    def __post_init__(self) -> None:
        loss, costs = np.array(self.loss, np.float64), np.asarray(self.costs)
        costs = np.array(costs, np.float64 if costs.dtype.kind == "f" else np.int64)
        if loss.ndim != 2 or costs.ndim != 3 or costs.shape[1:] != loss.shape or 0 in costs.shape:
            raise ConfigError(
                "a problem needs loss[layer, option] and costs[constraint, layer, option],"
                f" got shapes {loss.shape} and {costs.shape}"
            )
        loss.flags.writeable = costs.flags.writeable = False
        constraints, layers, options = costs.shape
        for name, value in {
            "loss": loss,
            "costs": costs,
            "groups": tuple(tuple(int(layer) for layer in group) for group in self.groups),
            "layer_names": _names("layer", self.layer_names, layers),
            "option_names": _names("option", self.option_names, options),
            "constraint_names": _names("constraint", self.constraint_names, constraints),
        }.items():
            object.__setattr__(self, name, value)
        _check_tables(self)
        _check_groups(self)

    @property
    def allowed(self) -> Bool[np.ndarray, "layer option"]:
        """Which options each layer may take."""
        return np.isfinite(self.loss)

    def total_loss(self, allocations: Allocations) -> Float[np.ndarray, "..."]:
        """The summed loss of allocations int[..., layer]: +inf if a layer may not take its option."""
        return self.loss[np.arange(len(self.loss)), allocations].sum(axis=-1)

    def total_cost(self, allocations: Allocations) -> Num[np.ndarray, "... constraint"]:
        """The summed costs of allocations int[..., layer]."""
        return np.moveaxis(self.costs[:, np.arange(len(self.loss)), allocations].sum(axis=-1), 0, -1)


def merge_groups(problem: Problem) -> tuple[Problem, Int[np.ndarray, "layer"]]:
    """The problem with every group as one layer, whose losses and costs are the members' sums, and the way back.

    Returns (merged, index): ``allocations[..., index]`` turns allocations of the merged problem into the original's.
    """
    leader = np.arange(len(problem.loss))
    for group in problem.groups:
        leader[list(group)] = min(group)
    leaders, index = np.unique(leader, return_inverse=True)
    members = [np.flatnonzero(index == m) for m in range(len(leaders))]
    loss = np.stack([problem.loss[m].sum(axis=0) for m in members])
    costs = np.stack([problem.costs[:, m].sum(axis=1) for m in members], axis=1)
    names = tuple(problem.layer_names[layer] for layer in leaders)
    merged = Problem(loss, costs, (), names, problem.option_names, problem.constraint_names)
    return replace(merged, float_loss=problem.float_loss), index


def lowest_loss(problem: Problem) -> Int[np.ndarray, "layer"]:
    """The best option of every layer; of equal losses the cheapest. The problem's groups must be merged."""
    return first_options(problem, problem.loss, relative_cost(problem))


def relative_cost(problem: Problem) -> Float[np.ndarray, "layer option"]:
    """One number per option where there are several constraints: the sum of costs relative to the greatest of each."""
    greatest = problem.costs.max(axis=(1, 2), keepdims=True)
    return (problem.costs / np.where(greatest > 0, greatest, 1)).sum(axis=0)


def generator(key: Key) -> np.random.Generator:
    """A NumPy generator from an int seed or a JAX PRNG key (typed or raw)."""
    if isinstance(key, int | np.integer):
        return np.random.default_rng(int(key))
    import jax  # here alone: the command line lists allocators without paying for its import

    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())


def draw_options(
    random: np.random.Generator, allowed: Bool[np.ndarray, "layer option"], count: int
) -> Int[np.ndarray, "draw layer"]:
    """Random allocations: every layer draws uniformly from its allowed options."""
    return np.where(allowed, random.random((count, *allowed.shape)), -1.0).argmax(axis=-1)


def first_options(problem: Problem, *criteria: np.ndarray) -> Int[np.ndarray, "layer"]:
    """Per layer the allowed option that is first by the criteria [layer, option], then by index."""
    order = np.lexsort((*criteria[::-1], ~problem.allowed), axis=1)
    return order[:, 0]


def _names(kind: str, names: Iterable[str], count: int) -> tuple[str, ...]:
    given = tuple(names) or tuple(f"{kind} {i}" for i in range(count))
    if len(given) != count:
        raise ConfigError(f"{kind}_names has {len(given)} entries for {count} {kind}s")
    return given


def _check_tables(problem: Problem) -> None:
    loss, costs, names = problem.loss, problem.costs, problem.layer_names
    for bad, what in (
        (np.isnan(loss), "a loss that is NaN; measure it again, or use +inf to forbid an option"),
        (loss == -np.inf, "a loss of -inf; losses must be finite, or +inf to forbid an option"),
        (~(np.isfinite(costs) & (costs >= 0)).all(axis=0), "a cost that is negative or not finite"),
    ):
        for layer, option in np.argwhere(bad):
            raise ConfigError(f"layer '{names[layer]}', option '{problem.option_names[option]}' has {what}")
    for layer in np.flatnonzero(~problem.allowed.any(axis=1)):
        raise ConfigError(f"layer '{names[layer]}' has no allowed option: its losses are all +inf")
    if costs.astype(np.float64).max(axis=2).sum(axis=1).max() >= MAX_TOTAL and costs.dtype.kind == "i":
        raise ConfigError(f"integer costs add up to {MAX_TOTAL} or more; use a larger unit")


def _check_groups(problem: Problem) -> None:
    members = [layer for group in problem.groups for layer in group]
    for layer in members:
        if not 0 <= layer < len(problem.loss):
            raise ConfigError(f"group member {layer} is no layer: there are layers 0 to {len(problem.loss) - 1}")
        if members.count(layer) > 1:
            raise ConfigError(f"layer '{problem.layer_names[layer]}' is in more than one group, or twice in one")
    for group in problem.groups:
        if not problem.allowed[list(group)].all(axis=0).any():
            tied = ", ".join(problem.layer_names[layer] for layer in group)
            raise ConfigError(f"the tied layers {tied} have no allowed option in common")
