"""NSGA-II: a population of allocations evolves towards the whole front of loss against costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from qresearch.allocation.budgets import Limits, affordable, check_budgets, within
from qresearch.allocation.problem import Key, Problem, draw_options, generator, lowest_loss, merge_groups
from qresearch.allocation.uniform import uniform_candidates

Losses = Float[np.ndarray, "candidate"]


def allocate(
    key: Key, problem: Problem, budgets: ArrayLike, population: int = 32, generations: int = 16
) -> tuple[Int[np.ndarray, "budget layer"], dict[str, Any]]:
    """The best allocation within each budget among all that an evolution of ``generations`` has tried.

    Objectives are the loss and every cost. The loss is the measured one where the problem can measure it
    (``Problem.measure``: joint effects included), else the sum of the table; no allocation is measured twice. The first
    population has the uniform allocations, a cheap one for every budget, the best options, and random ones; parents are
    chosen by tournaments of two (rank, then crowding distance), children take each layer from either parent, and one
    layer in expectation gets a random option. ``info["evaluations"]``: allocations whose loss was asked for.
    Deb, Pratap, Agarwal and Meyarivan, A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, 2002,
    https://doi.org/10.1109/4235.996017. Where we differ: uniform crossover and mutation of options instead of real
    numbers.
    """
    start = time.perf_counter()
    limits = check_budgets(problem, budgets)
    merged, index = merge_groups(problem)
    random = generator(key)
    archive = _Archive(merged, index, problem)
    parents = _first(random, merged, limits, population)
    archive.losses(parents)
    for _ in range(generations):
        rank, distance = _ranked(archive.objectives(parents))
        everyone = np.unique(np.concatenate([parents, _children(random, merged, parents, rank, distance)]), axis=0)
        rank, distance = _ranked(archive.objectives(everyone))
        parents = everyone[np.lexsort((-distance, rank))[:population]]
    tried, loss = archive.all()
    met = within(merged, tried, limits)
    found = tried[np.where(met, loss, np.inf).argmin(axis=1)]
    info = {"stochastic": True, "evaluations": len(tried), "seconds": time.perf_counter() - start}
    return found[:, index], info


class _Archive:
    """The loss of every allocation that was asked for; each is evaluated once, new ones together."""

    def __init__(self, merged: Problem, index: Int[np.ndarray, "layer"], problem: Problem) -> None:
        self.merged, self.index, self.problem = merged, index, problem
        self.known: dict[bytes, float] = {}

    def losses(self, allocations: Int[np.ndarray, "candidate layer"]) -> Losses:
        keys = [row.tobytes() for row in allocations]
        new = {key: row for key, row in zip(keys, allocations) if key not in self.known}
        if new:
            asked = np.stack(list(new.values()))
            measure = self.problem.measure
            found = self.merged.total_loss(asked) if measure is None else measure(asked[:, self.index])
            self.known.update(zip(new, np.asarray(found, np.float64)))
        return np.array([self.known[key] for key in keys])

    def objectives(self, allocations: Int[np.ndarray, "candidate layer"]) -> Float[np.ndarray, "candidate objective"]:
        return np.column_stack([self.losses(allocations), self.merged.total_cost(allocations)])

    def all(self) -> tuple[Int[np.ndarray, "candidate layer"], Losses]:
        rows = np.frombuffer(b"".join(self.known), np.int64).reshape(len(self.known), -1)
        return rows, np.array(list(self.known.values()))


def _first(
    random: np.random.Generator, problem: Problem, limits: Limits, population: int
) -> Int[np.ndarray, "candidate layer"]:
    cheap = [found for found in (affordable(problem, limit) for limit in limits) if found is not None]
    given = np.unique(np.concatenate([uniform_candidates(problem), cheap, lowest_loss(problem)[None]]), axis=0)
    draws = draw_options(random, problem.allowed, max(population - len(given), 0))
    return np.concatenate([given, draws]).astype(np.int64)


def _children(
    random: np.random.Generator,
    problem: Problem,
    parents: Int[np.ndarray, "candidate layer"],
    rank: Int[np.ndarray, "candidate"],
    distance: Float[np.ndarray, "candidate"],
) -> Int[np.ndarray, "candidate layer"]:
    first, second = random.integers(0, len(parents), (2, 2, len(parents)))  # two tournaments
    wins = (rank[first] < rank[second]) | ((rank[first] == rank[second]) & (distance[first] > distance[second]))
    father, mother = parents[np.where(wins, first, second)]
    child = np.where(random.random(father.shape) < 0.5, father, mother)
    mutated = random.random(child.shape) < 1.0 / child.shape[1]
    return np.where(mutated, draw_options(random, problem.allowed, len(child)), child)


def _ranked(
    objectives: Float[np.ndarray, "candidate objective"],
) -> tuple[Int[np.ndarray, "candidate"], Float[np.ndarray, "candidate"]]:
    """(rank, crowding distance): rank 0 is what nothing dominates, rank 1 what only rank 0 does, and so on."""
    left, right = objectives[:, None], objectives[None]
    dominates = np.all(left <= right, axis=-1) & np.any(left < right, axis=-1)
    rank, distance = np.full(len(objectives), -1), np.zeros(len(objectives))
    level = 0
    while (rank < 0).any():
        open_ = rank < 0
        front = np.flatnonzero(open_ & ~dominates[open_].any(axis=0))
        rank[front], distance[front] = level, _crowding(objectives[front])
        level += 1
    return rank, distance


def _crowding(objectives: Float[np.ndarray, "candidate objective"]) -> Float[np.ndarray, "candidate"]:
    """How far apart each candidate's neighbours are, summed over objectives; infinite at the ends."""
    distance = np.zeros(len(objectives))
    for values in objectives.T:
        order = np.argsort(values, kind="stable")
        spread = values[order[-1]] - values[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / spread
    return distance
